"""What the events of one job do to the text that they write.

Shared by the output view and by the lanes of several texts side by side.
"""

from __future__ import annotations

from app.window.records import Output
from engine.events import Finished, Started, Token


def begin(event: Started) -> Output:
    """The empty text of a job that was admitted."""
    return Output(
        prompt=event.prompt,
        config=event.config,
        model=event.model,
        model_name=event.model.name,
        precision=event.model.precision,
        dropped_tokens=event.dropped_tokens,
        job=event.job_id,
    )


def append(output: Output, event: Token) -> None:
    """One token more."""
    start = len(output.text)
    output.text += event.text
    output.spans.append((start, len(output.text)))
    output.token_ids.append(event.token_id)
    output.timings = event.timings


def end(output: Output, event: Finished) -> bool:
    """The text is complete; False where it does not go on from what has streamed."""
    goes_on = event.text.startswith(output.text)
    output.text = event.text  # includes what the stream decoder had held back
    if output.spans:
        output.spans[-1] = (output.spans[-1][0], len(event.text))
    output.token_ids = list(event.token_ids)
    output.timings = event.timings
    output.reason = event.reason
    return goes_on
