"""What the window costs: CPU while it is idle, and tokens per second against the command line.

    python testing/window_cost.py [--model gpt2] [--runs 5] [--new-tokens 200] [--idle-seconds 60]

Opens the real window (on a virtual X server with software OpenGL where there is no display; needs
the Debian packages xvfb and xdotool), leaves it alone for a minute, then lets window and command
line write the same text in turn. Sizes that are not on this disk run with random weights of the
true shape. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PROMPT = "The sun sets on"


@contextlib.contextmanager
def display() -> Iterator[str]:
    """The display to use: the user's, or a virtual one for as long as this lasts."""
    if os.environ.get("DISPLAY"):
        yield os.environ["DISPLAY"]
        return
    read_end, write_end = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "1280x800x24"],
        pass_fds=(write_end,),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(write_end)
    try:
        with os.fdopen(read_end) as numbers:
            yield f":{numbers.readline().strip()}"
    finally:
        server.terminate()
        server.wait()


class WindowUnderTest:
    """The real window as a process, read by its state file and driven by xdotool."""

    def __init__(self, model: str, threads: int, env: dict[str, str]) -> None:
        self._env = env
        self._state = Path(env["GPT2_WORKBENCH_UI_STATE"])
        self.process = subprocess.Popen(
            [sys.executable, "main.py", "--model", model, "--threads", str(threads)],
            cwd=ROOT,
            env=env,
        )
        self.wait(lambda s: s["model_status"] == "ready", 120)

    def state(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._state.read_text(encoding="utf-8"))
            return found
        except FileNotFoundError:
            return {"model_status": "", "generation": "", "node": None}

    def wait(self, fact: Callable[[dict[str, Any]], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not fact(self.state()):
            if self.process.poll() is not None:
                raise SystemExit("the window ended by itself")
            if time.monotonic() > deadline:
                raise SystemExit(f"the window did not get there: {self.state()}")
            time.sleep(0.2)

    def cpu_seconds(self) -> float:
        import psutil

        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def write_once(self) -> None:
        """Enter in the prompt; returns when the text is complete."""
        before = self.state()["node"]
        subprocess.run(["xdotool", "key", "Return"], env=self._env, check=True)
        self.wait(lambda s: s["node"] != before and s["generation"] == "idle", 300)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


def window_speed(window: WindowUnderTest) -> float:
    """Decode tokens per second of one text written in the window, from its own history."""
    from engine.history import open_history

    window.write_once()
    time.sleep(1.0)  # the recorder is at most half a second behind
    with open_history() as store:
        timings = next(n for n in store.recent() if n.kind == "generation").timings
    return (timings["new_tokens"] - 1) / timings["decode_s"]


def command_line_speed(model: str, threads: int, new_tokens: int) -> float:
    """Decode tokens per second of the same text on the command line."""
    done = subprocess.run(
        [
            *(sys.executable, "main.py", "generate", "--model", model, "--threads", str(threads)),
            *("--prompt", PROMPT, "--max-new-tokens", str(new_tokens), "--json", "--no-history"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    timings = json.loads(done.stdout.splitlines()[-1])["timings"]
    return float((timings["new_tokens"] - 1) / timings["decode_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    args = parser.parse_args()

    from app.settings import Settings, save_settings
    from engine import catalog
    from engine.config import GenerationConfig
    from engine.random_weights import random_model_folder
    from engine.threads import default_threads

    entry = catalog.find(args.model)
    random = not catalog.is_downloaded(entry)
    model = str(random_model_folder(entry.name, entry.shape)) if random else args.model
    threads = args.threads or default_threads()
    home = Path(tempfile.mkdtemp(prefix="window-cost-"))
    os.environ["GPT2_WORKBENCH_HOME"] = str(home)
    save_settings(
        Settings(generation=GenerationConfig(max_new_tokens=args.new_tokens, top_k=0, top_p=1.0))
    )
    try:
        with display() as number:
            env = os.environ | {
                "DISPLAY": number,
                "GPT2_WORKBENCH_UI_STATE": str(home / "state.json"),
            }
            window = WindowUnderTest(model, threads, env)
            try:
                time.sleep(5.0)
                before, begun = window.cpu_seconds(), time.monotonic()
                time.sleep(args.idle_seconds)
                idle = (window.cpu_seconds() - before) / (time.monotonic() - begun)
                subprocess.run(["xdotool", "type", "--delay", "20", PROMPT], env=env, check=True)
                time.sleep(1.0)
                window_speed(window)  # warm-up
                shown, plain = [], []
                for _ in range(args.runs):
                    shown.append(window_speed(window))
                    plain.append(command_line_speed(model, threads, args.new_tokens))
            finally:
                window.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)
    result = {
        "model": entry.name + (" (random weights)" if random else ""),
        "threads": threads,
        "idle_cpu_share_of_one_core": idle,
        "window_tokens_per_s": statistics.median(shown),
        "command_line_tokens_per_s": statistics.median(plain),
        "ratio": statistics.median(a / b for a, b in zip(shown, plain, strict=True)),
        "runs": args.runs,
        "new_tokens": args.new_tokens,
    }
    print(f"idle window                {idle:.2%} of one core")
    print(f"tokens/s in the window     {result['window_tokens_per_s']:.1f}")
    print(f"tokens/s, command line     {result['command_line_tokens_per_s']:.1f}")
    print(f"ratio, median of pairs     {result['ratio']:.3f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
