"""Every limit and choice of the HTTP server, declared once: flags, documentation and checks."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from engine.config import MAX_SEQUENCES
from engine.errors import ConfigError
from engine.options import Options, option

LOOPBACK = "localhost"
_KEY_BYTES = 16  # of a key that opens the server to a network


@dataclass(frozen=True)
class ServerSettings(Options):
    """How the server listens and what one request may ask for."""

    host: str = option(
        LOOPBACK,
        "Address",
        "Where to listen. localhost is this machine alone; 0.0.0.0 is every network, which needs "
        "an API key.",
        section="Server",
    )
    port: int = option(
        8000,
        "Port",
        "TCP port; 0 takes a free one.",
        minimum=0,
        maximum=65535,
        section="Server",
    )
    api_key: str | None = option(
        None,
        "API key",
        "Requests must carry it as `Authorization: Bearer KEY`. Rather set the environment's "
        "GPT2_WORKBENCH_API_KEY, which other users of the machine cannot read.",
        section="Server",
        unset="none",
    )
    allowed_hosts: tuple[str, ...] = option(
        (),
        "Host names",
        "Names beside the address itself that requests may give in their Host header.",
        section="Server",
        aliases=("allowed_host",),
    )
    allowed_origins: tuple[str, ...] = option(
        (),
        "Origins",
        "Web pages that may call the server from a browser, such as http://localhost:3000 (CORS). "
        "Without any, only the server's own page may.",
        section="Server",
        aliases=("allowed_origin",),
    )
    max_active: int = option(
        16,
        "Slots",
        "How many texts are written at once, each with a KV cache of its own.",
        minimum=1,
        maximum=256,
        section="Server limits",
    )
    max_queue: int = option(
        64,
        "Queue",
        "How many texts may wait for a slot; a request beyond gets 503 and Retry-After.",
        minimum=0,
        maximum=100_000,
        section="Server limits",
    )
    max_body_bytes: int = option(
        1_048_576,
        "Body",
        "Bytes of a request's body at most; more gets 413.",
        minimum=1024,
        maximum=1_000_000_000,
        section="Server limits",
    )
    max_prompt_tokens: int = option(
        16_384,
        "Prompt tokens",
        "Tokens of one prompt at most. /generate lets the model see the last ones that fit into "
        "its context; /v1/completions refuses what does not fit.",
        minimum=1,
        maximum=10_000_000,
        section="Server limits",
    )
    max_texts: int = option(
        MAX_SEQUENCES,
        "Texts",
        "Texts of one request at most: prompts times num_return_sequences, n or best_of.",
        minimum=1,
        maximum=MAX_SEQUENCES,
        section="Server limits",
    )
    max_tokens: int = option(
        4096,
        "New tokens",
        "New tokens of one text at most.",
        minimum=1,
        maximum=1_000_000,
        section="Server limits",
    )
    max_stop: int = option(
        16,
        "Stop strings",
        "Stop strings of one request at most.",
        minimum=0,
        maximum=1000,
        section="Server limits",
    )
    max_words: int = option(
        512,
        "Words",
        "Entries of logit_bias and of banned_words at most.",
        minimum=0,
        maximum=100_000,
        section="Server limits",
    )
    max_word_chars: int = option(
        256,
        "Word length",
        "Characters of a stop string, a banned word or a biased text at most.",
        minimum=1,
        maximum=100_000,
        section="Server limits",
    )
    max_connections: int = option(
        512,
        "Connections",
        "Open connections at most, idle ones too; a request over another one gets 503.",
        minimum=1,
        maximum=100_000,
        section="Server limits",
    )
    header_timeout: float = option(
        10.0,
        "Header timeout",
        "Seconds in which a request's header must have arrived.",
        minimum=0.05,
        maximum=3600,
        section="Server limits",
    )
    body_timeout: float = option(
        30.0,
        "Body timeout",
        "Seconds in which a request's body must have arrived; then 408.",
        minimum=0.05,
        maximum=3600,
        section="Server limits",
    )
    write_timeout: float = option(
        30.0,
        "Write timeout",
        "Seconds that a client which does not read may hold up what is sent to it; then it is "
        "disconnected and its texts are given up.",
        minimum=0.05,
        maximum=3600,
        section="Server limits",
    )
    drain: float = option(
        20.0,
        "Drain",
        "Seconds that requests under way are given to end after SIGTERM or Ctrl+C; a second "
        "signal ends them at once.",
        minimum=0.0,
        maximum=3600,
        section="Server limits",
    )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host.lower() == LOOPBACK:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check_together(self) -> None:
        """ConfigError where the server would be open to a network without a key."""
        key = self.api_key
        if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key):
            raise ConfigError("api_key must be printable ASCII without spaces around it")
        if key == "":
            raise ConfigError("api_key is empty; give one, or leave it out")
        if self.loopback:
            return
        if key is None:
            raise ConfigError(
                f"listening on {self.host} would let the network use this machine without asking; "
                "set GPT2_WORKBENCH_API_KEY, or listen on localhost"
            )
        if len(key) < _KEY_BYTES:
            raise ConfigError(
                f"an api_key for the network needs at least {_KEY_BYTES} characters, this one has "
                f"{len(key)}; make one with: python -c 'import secrets; "
                "print(secrets.token_urlsafe(32))'"
            )

    def __repr__(self) -> str:  # logs and tracebacks do not tell the key
        values = {name: value for name, value in self.as_dict().items() if name != "api_key"}
        return f"ServerSettings({values})"
