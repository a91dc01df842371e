"""What the events of one job do to the text that they write.

Shared by the output view and by the lanes of several texts side by side.
"""

from __future__ import annotations

from app.window.records import Output
from engine.events import Beams, Finished, Reread, Started, Token


def begin(event: Started) -> Output:
    """The empty text of a job that was admitted."""
    return Output(
        prompt=event.prompt,
        config=event.config,
        model=event.model,
        model_name=event.model.name,
        precision=event.model.precision,
        prompt_tokens=event.prompt_tokens,
        dropped_tokens=event.dropped_tokens,
        sequence=event.sequence,
        job=event.job_id,
    )


def append(output: Output, event: Token) -> bool:
    """One token more; False where it takes the place of a preview."""
    start = output.spans[-1][1] if output.spans else 0
    goes_on = start == len(output.text)
    output.text = output.text[:start] + event.text
    output.spans.append((start, len(output.text)))
    output.token_ids.append(event.token_id)
    output.records.append(event.record)
    output.timings = event.timings
    return goes_on


def preview(output: Output, event: Beams) -> None:
    """The best of the beams so far, which may still be dropped."""
    output.text = event.texts[0] if event.texts else ""
    output.timings = event.timings


def reread(output: Output, event: Reread) -> None:
    """The model sees less of the text from here on."""
    output.reread = (event.kept, event.begin)


def end(output: Output, event: Finished) -> bool:
    """The text is complete; False where it does not go on from what has streamed."""
    goes_on = event.text.startswith(output.text)
    size = len(event.text)
    output.text = event.text  # includes what the stream decoder had held back
    if len(output.spans) != len(event.token_ids):  # beam search: the tokens were not streamed
        output.spans, output.records = [], []
    elif output.spans:
        # A stop string is cut off again, with its tokens' part of the text.
        output.spans = [(min(start, size), min(end, size)) for start, end in output.spans]
        output.spans[-1] = (output.spans[-1][0], size)
    output.token_ids = list(event.token_ids)
    output.timings = event.timings
    output.reason = event.reason
    return goes_on
