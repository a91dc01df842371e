"""From the experiments' records to testing/TESTING_RESULTS.md; testing/run_all.py is the entry.

evidence.py: figures with their intervals; findings.py and winners.py: what they support, in words;
document.py: all of it in Markdown; plausible.py: whether records and plots can be right.
"""
