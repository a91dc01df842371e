"""The history's tree, its searches, and many who write at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import paths
from engine.errors import HistoryError
from engine.history import HistoryStore, open_history
from tests.history_support import (
    history_path,  # noqa: F401 - a fixture
    set_aside,
)


@pytest.fixture
def store(path: Path) -> Iterator[HistoryStore]:
    with HistoryStore(path) as opened:
        yield opened


def generation(store: HistoryStore, prompt: str, text: str, parent: int | None = None) -> int:
    """A finished generation below its prompt."""
    node = store.add("generation", parent=store.attach_prompt(prompt, parent))
    store.finish(node, "length", text=text)
    return node


# The tree


def test_a_node_keeps_all_that_made_it(path: Path) -> None:
    with HistoryStore(path) as store:
        prompt = store.add("prompt", "The sun", created=12.5)
        node = store.add(
            "generation",
            parent=prompt,
            model="verse",
            model_path="/models/verse",
            weights_hash="ab12",
            backend="torch",
            precision="int8",
            threads=2,
            seed=2**63 - 1,
            config={"temperature": 0.8, "top_k": 50},
        )
        store.append_text(node, " sets", [5, 70_000])
        store.finish(node, "length", {"total_s": 1.25}, record_blob=b"\x00\xff")
    with HistoryStore(path) as store:
        assert store.notice is None
        found = store.get(node)
        assert (found.parent, found.kind, found.text) == (prompt, "generation", " sets")
        assert found.token_ids == (5, 70_000)
        assert (found.model, found.model_path, found.weights_hash) == (
            "verse",
            "/models/verse",
            "ab12",
        )
        assert (found.backend, found.precision, found.threads) == ("torch", "int8", 2)
        assert found.seed == 2**63 - 1
        assert found.config == {"temperature": 0.8, "top_k": 50}
        assert found.timings == {"total_s": 1.25}
        assert found.record_blob == b"\x00\xff"
        assert [n.record_blob for n in store.recent()] == [None]  # lists are read without it
        assert (found.finish_reason, found.message, found.hidden) == ("length", "", False)
        assert store.get(prompt).created == 12.5
        assert store.full_text(node) == "The sun sets"
        assert store.prompt_of(node) == "The sun"


def test_text_is_readable_while_it_is_appended(store: HistoryStore) -> None:
    node = store.add("generation", parent=store.add("prompt", "A"), finish_reason=None)
    store.append_text(node, "b", [1])
    store.append_text(node, "", [2])
    store.append_text(node, "c", [3])
    assert store.get(node).text == "bc"
    assert store.get(node).token_ids == (1, 2, 3)
    assert store.full_text(node) == "Abc"
    assert [found.id for found in store.search("bc")] == [node]
    store.finish(node, "end_of_text")
    assert store.get(node).text == "bc"
    assert store.get(node).token_ids == (1, 2, 3)
    assert store._writer.execute("SELECT count(*) FROM piece").fetchone() == (0,)


@pytest.mark.parametrize(
    "text", ["", "a\x00b", "🙂 ﷽ é\r\n", "x" * 200_000, "'; DROP TABLE node; --"]
)
def test_any_text_comes_back_unchanged(store: HistoryStore, text: str) -> None:
    node = store.add("prompt", text)
    assert store.get(node).text == text
    below = store.add("generation", parent=node)
    store.append_text(below, text)
    store.append_text(below, text)
    assert store.get(below).text == text * 2
    assert store.full_text(below) == text * 3


def test_lone_surrogates_are_replaced(store: HistoryStore) -> None:
    # As in a prompt, and in a folder whose name is not text.
    node = store.get(store.add("prompt", "a\ud83db\udc00c", model="\udcff", model_path="/\udcff"))
    assert (node.text, node.model, node.model_path) == ("a�b�c", "�", "/�")


def test_trying_again_makes_siblings(store: HistoryStore) -> None:
    first = generation(store, "The sun", " sets")
    # Both ways of asking again: from the prompt, and from the text that is on the screen.
    second = generation(store, "The sun", " rises", parent=store.get(first).parent)
    third = generation(store, "The sun", " burns", parent=first)
    prompt = store.get(first).parent
    assert prompt is not None
    assert [node.id for node in store.children(prompt)] == [first, second, third]
    assert {store.full_text(node) for node in (first, second, third)} == {
        "The sun sets",
        "The sun rises",
        "The sun burns",
    }


def test_continuing_and_typing_make_a_path(store: HistoryStore) -> None:
    first = generation(store, "The sun", " sets")
    continued = generation(store, "The sun sets", " early", parent=first)
    assert store.get(continued).parent == first
    typed = generation(store, "The sun sets early. The moon", " rises", parent=continued)
    assert [(node.kind, node.text) for node in store.path_to_root(typed)] == [
        ("prompt", "The sun"),
        ("generation", " sets"),
        ("generation", " early"),
        ("edit", ". The moon"),
        ("generation", " rises"),
    ]
    assert store.full_text(typed) == "The sun sets early. The moon rises"


def test_going_back_branches_where_the_texts_part(store: HistoryStore) -> None:
    first = generation(store, "The sun", " sets")
    second = generation(store, "The sun sets", " early", parent=first)
    branch = generation(store, "The sun sets late", " today", parent=second)
    assert [node.text for node in store.path_to_root(branch)] == [
        "The sun",
        " sets",
        " late",
        " today",
    ]
    other = generation(store, "A moon", " is up", parent=second)
    assert [node.kind for node in store.path_to_root(other)] == ["prompt", "generation"]


def test_nothing_is_put_below_a_text_that_may_still_grow(store: HistoryStore) -> None:
    running = store.add("generation", parent=store.attach_prompt("The sun"))
    store.append_text(running, " se")
    below = generation(store, "The sun sets", " early", parent=running)
    store.finish(running, "length", text=" sets over the sea")
    assert store.full_text(below) == "The sun sets early"


def test_an_unknown_parent_makes_a_root(store: HistoryStore) -> None:
    node = store.attach_prompt("The sun", parent=999)
    assert store.get(node).parent is None


@pytest.mark.parametrize("name", ["get", "path_to_root", "full_text", "children", "hide"])
def test_a_node_that_is_not_there_is_a_clear_error(store: HistoryStore, name: str) -> None:
    with pytest.raises(HistoryError, match="no entry 7"):
        getattr(store, name)(7)


def test_a_refused_node_leaves_nothing_behind(store: HistoryStore) -> None:
    with pytest.raises(HistoryError):
        store.add("generation", parent=999)
    with pytest.raises(HistoryError):
        store.append_text(999, "x")
    with pytest.raises(HistoryError):
        store.add("prompt", seed=2**70)
    assert store.count() == 0
    assert store.add("prompt", "fine") > 0


# Lists and searches


def test_recent_lists_generations_newest_first(store: HistoryStore) -> None:
    nodes = [generation(store, f"p{n}", f"g{n}") for n in range(5)]
    lonely = store.add("prompt", "not generated from")
    assert [node.id for node in store.recent()] == [lonely, *reversed(nodes)]
    assert [node.id for node in store.recent(limit=2, offset=1)] == [nodes[4], nodes[3]]
    assert store.recent(limit=0) == []
    assert store.count() == 6


def test_hiding_can_be_undone(store: HistoryStore) -> None:
    first, second = generation(store, "a", "b"), generation(store, "a", "c")
    store.hide(first)
    assert [node.id for node in store.recent()] == [second]
    assert [node.id for node in store.search("a")] == [second]
    assert store.count() == 1
    assert store.get(first).hidden
    assert store.full_text(first) == "ab"
    store.unhide(first)
    assert [node.id for node in store.recent()] == [second, first]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("100%", {"percent"}),
        ("%", {"percent"}),
        ("a_b", {"underscore"}),
        ("_", {"underscore"}),
        ("'", {"quote"}),
        ('"', {"quote"}),
        ('say "it\'s"', {"quote"}),
        ("🙂", {"emoji"}),
        ("\\", {"backslash"}),
        ("*", set()),
        ("STRASSE", {"sharp"}),
        ("straße", {"sharp"}),
        ("ΌΔΟΣ", {"greek"}),
        ("мир", {"cyrillic"}),
        ("\x00", {"nul"}),
        ("\ud83d", set()),
        ("not in there", set()),
        ("a' OR '1'='1", set()),
    ],
)
def test_a_query_is_taken_literally(store: HistoryStore, query: str, found: set[str]) -> None:
    texts = {
        "percent": "it is 100% sure",
        "underscore": "a_b",
        "axb": "axb",
        "quote": 'they say "it\'s" here',
        "emoji": "smile 🙂!",
        "backslash": "C:\\temp",
        "sharp": "die Straße",
        "greek": "η όδος",
        "cyrillic": "МИР",
        "nul": "a\x00b",
    }
    names = {generation(store, text, ""): name for name, text in texts.items()}
    assert {names[node.id] for node in store.search(query)} == found


def test_a_search_reads_on_from_the_last_entry(store: HistoryStore) -> None:
    nodes = [generation(store, f"The sun {n}", " sets") for n in range(7)]
    generation(store, "another", " thing")
    pages, before = [], None
    while page := store.search("SUN", limit=3, before_id=before):
        pages.append([node.id for node in page])
        before = page[-1].id
    assert pages == [nodes[6:3:-1], nodes[3:0:-1], nodes[:1]]


def test_a_search_finds_what_spans_prompt_and_text(store: HistoryStore) -> None:
    node = generation(store, "The sun sets on", " the sea")
    assert [found.id for found in store.search("sets on the sea")] == [node]


def test_an_empty_query_lists_all(store: HistoryStore) -> None:
    nodes = [generation(store, "p", "g") for _ in range(3)]
    assert [node.id for node in store.search("")] == nodes[::-1]


# Threads and processes


def test_many_threads_write_and_read_at_once(path: Path, store: HistoryStore) -> None:
    def work(name: str) -> None:
        try:
            for number in range(20):
                node = store.add("generation", parent=root)
                store.append_text(node, f"{name}-{number}", [number])
                store.finish(node, "length")
                assert store.get(node).text == f"{name}-{number}"
                store.recent(limit=5)
        except BaseException as error:
            errors.append(error)

    errors: list[BaseException] = []
    root = store.add("prompt", "root")
    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert {node.text for node in store.children(root)} == {
        f"{name}-{number}" for name in "abcd" for number in range(20)
    }


def test_two_copies_of_the_program_share_one_history(path: Path, store: HistoryStore) -> None:
    with HistoryStore(path) as other:
        first = store.add("prompt", "mine")
        second = other.add("prompt", "theirs")
        assert [node.id for node in store.recent()] == [second, first]
        assert other.get(first).text == "mine"


def test_a_locked_history_is_a_clear_error_and_works_again(path: Path) -> None:
    with HistoryStore(path, timeout_s=0.05) as store:
        kept = store.add("prompt", "before")
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(HistoryError, match="locked by another program"):
            store.add("prompt", "meanwhile")
        assert store.get(kept).text == "before"  # reading goes on
        blocker.execute("ROLLBACK")
        blocker.close()
        store.add("prompt", "after")
        assert store.count() == 2


def test_a_history_locked_for_good_cannot_be_opened_but_is_left_alone(path: Path) -> None:
    HistoryStore(path).close()
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("PRAGMA locking_mode = EXCLUSIVE")
    blocker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(HistoryError, match="locked by another program"):
        HistoryStore(path, timeout_s=0.05)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert not set_aside(path)
    HistoryStore(path).close()


def test_a_full_disk_loses_nothing_and_writing_goes_on_with_space(store: HistoryStore) -> None:
    node = store.add("generation", parent=store.add("prompt", "kept"))
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(HistoryError, match="disk is full"):
        store.append_text(node, "x" * 100_000)
    with pytest.raises(HistoryError, match="free some space"):
        store.add("prompt", "y" * 100_000)
    assert store.full_text(node) == "kept"
    store._writer.execute("PRAGMA max_page_count = 1000000")
    store.append_text(node, "x" * 100_000)
    assert store.full_text(node) == "kept" + "x" * 100_000
    assert store._writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on file sizes")
def test_a_write_that_the_system_refuses_loses_nothing(path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from engine.errors import HistoryError
from engine.history import HistoryStore

store = HistoryStore(Path(sys.argv[1]))
node = store.add("prompt", "kept")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
kept = ["kept"]
try:
    while True:
        store.append_text(node, "x" * 10_000)
        kept.append("x" * 10_000)
except HistoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
store.append_text(node, "after")
assert store.get(node).text == "".join(kept) + "after"
store.finish(node, "length")
assert store._writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "the space left" in done.stdout or "disk is full" in done.stdout
    with HistoryStore(path) as store:
        assert store.notice is None
        assert store.recent()[0].text.endswith("xafter")


def test_a_closed_history_says_so(path: Path) -> None:
    store = HistoryStore(path)
    store.close()
    store.close()
    with pytest.raises(HistoryError, match="closed"):
        store.recent()
    with pytest.raises(HistoryError, match="closed"):
        store.add("prompt", "x")


def test_the_users_history_lies_in_the_data_folder() -> None:
    with open_history() as store:
        assert store.path == paths.data_dir() / "history.sqlite"
        assert store.path.exists()


def test_a_data_folder_that_cannot_be_made_is_a_history_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(HistoryError, match=paths.HOME_VARIABLE):
        open_history()
