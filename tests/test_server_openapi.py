"""The server against its own OpenAPI document: schemathesis, with data that fit and that do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from app.server.runner import ServerRunner
from tests.server_support import WAIT_S, client, loaded, running

if TYPE_CHECKING:  # it takes seconds to import
    from schemathesis import Case
    from schemathesis.schemas import APIOperation, BaseSchema

EXAMPLES = 100  # an operation, of data that fit and again of data that do not
BOTH = ("POSITIVE", "NEGATIVE")
OPERATIONS = {
    ("post", "/generate"): BOTH,
    ("post", "/v1/completions"): BOTH,
    ("get", "/v1/models/{name}"): BOTH[:1],  # any text is a name
    ("get", "/v1/models"): BOTH[:1],
    ("get", "/health"): BOTH[:1],
    ("get", "/metrics"): BOTH[:1],
}


@pytest.fixture(scope="module")
def runner(tiny_model_dir: Path) -> Iterator[ServerRunner]:
    """A server whose texts are short, so that many fit into the time."""
    with (
        loaded(tiny_model_dir) as worker,
        running(worker, max_tokens=4, max_texts=3, max_prompt_tokens=200) as runner,
    ):
        yield runner
        with client(runner) as http:
            assert http.get("/health").json()["queue"]["active"] == 0


@pytest.fixture(scope="module")
def described(runner: ServerRunner) -> Any:
    """The document, as it is sent."""
    with client(runner) as http:
        return http.get("/openapi.json").json()


@pytest.fixture(scope="module")
def document(runner: ServerRunner, described: Any) -> BaseSchema:
    import schemathesis

    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=str(runner.address))
    return schema


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_keeps_to_its_description(
    document: BaseSchema, method: str, path: str
) -> None:
    """No status, shape or content type that is not described: so no 5xx but 503, and no hang."""
    for mode in OPERATIONS[method, path]:
        statuses = statuses_of(document[path][method], mode)
        if mode == "POSITIVE" and "{" not in path:
            assert 200 in statuses, "nothing that fits was answered"


def statuses_of(operation: APIOperation, mode: str) -> set[int]:
    """How the server answered; an assertion fails where it did not keep to its description."""
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    statuses: set[int] = set()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=GenerationMode[mode]))
    def ask(case: Case) -> None:
        # What fits the schema may still be refused: options can contradict each other.
        answer = case.call_and_validate(timeout=WAIT_S, excluded_checks=[positive_data_acceptance])
        statuses.add(answer.status_code)

    ask()
    return statuses


def test_the_operations_are_those_of_the_document(described: Any) -> None:
    found = {(method, path) for path, item in described["paths"].items() for method in item}
    assert found == set(OPERATIONS)
