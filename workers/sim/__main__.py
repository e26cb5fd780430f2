"""`python -m workers.sim`: one simulated engine as a process.

It stops on SIGTERM and SIGINT within two seconds: streams end with an error event.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvloop
from aiohttp import web

from workers.sim.chips import read_chips
from workers.sim.driver import Driver
from workers.sim.engine import Engine
from workers.sim.events import EventEncoder, EventFormat, EventPublisher, HashFormat
from workers.sim.kvparams import OnFailure
from workers.sim.metrics import Metrics
from workers.sim.roofline import profile_of
from workers.sim.server import Served, Server
from workers.sim.shapes import VERSION
from workers.sim.speculation import BadSpeculation, Speculation
from workers.sim.tokens import BadModelDirectory, ChatTokenizer, write_model

if TYPE_CHECKING:  # it loads numpy, which an engine that hands nothing over does without
    from workers.sim.mover import Mover

GRACE_S = 0.5
"""How long open streams may take to say that they end; aiohttp grants it twice."""

WAITING_MAX = 4096


class CannotStart(Exception):
    """Says in one line why."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; names follow vLLM's where it has them."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.sim",
        description="A simulated engine: vLLM from outside, arithmetic inside.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="sim", help="name that clients use")
    add("--model-dir", type=Path, help="tokenizer and chat template; without it, one is made")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000, help="0 takes a free one")
    add("--events-port", type=int, help="publish KV events here")
    add("--replay-port", type=int, help="answer requests for missed KV events here")
    add("--event-topic", default="", help="topic of KV events")
    add("--event-format", type=EventFormat, default=EventFormat.MAP, choices=[*EventFormat])
    add("--hash-format", type=HashFormat, default=HashFormat.INT, choices=[*HashFormat])
    add("--profile", default="laptop", help="how fast it is: a name of timing.py or of a chip")
    add("--hardware", type=Path, nargs="*", default=[], help="TOML files with chips (chips.py)")
    add("--speed", type=_positive, default=1.0, help="run so many times as fast as the profile")
    add("--block-size", type=_count, default=16, help="tokens of a KV block")
    add("--blocks", type=_count, help="KV blocks; by default what the profile has room for")
    add("--speculative-config", type=_speculation, metavar="JSON", help="speculation.py's fields")
    add("--max-model-len", type=_count, help="context, by default the model directory's")
    add("--max-num-seqs", type=_count, help="sequences running at once; default the profile's")
    add("--max-num-batched-tokens", type=_count, help="tokens of a step; default the profile's")
    add("--max-num-queued-reqs", type=_count, default=WAITING_MAX, help="above it, 503")
    add("--kv-port", type=int, help="hand KV blocks over to other engines here; 0 takes a free one")
    add("--kv-lease-s", type=_positive, default=30.0, help="keep them for so long unfetched")
    add("--kv-bytes-per-s", type=_positive, help="send no faster than this")
    add(
        *("--kv-load-failure-policy",),
        type=OnFailure,
        default=OnFailure.FAIL,
        choices=[*OnFailure],
        help="what becomes of a request whose blocks do not come",
    )
    add("--kv-overlapped", action="store_true", help="both legs are asked at once, as by SGLang")
    add("--start-delay-s", type=float, default=0.0, help="listen only after this long")
    return parser.parse_args(arguments)


async def serve(options: argparse.Namespace) -> None:
    """Run until told to stop; raises `CannotStart`."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if options.start_delay_s:
        try:
            async with asyncio.timeout(options.start_delay_s):
                await stopping.wait()
            return
        except TimeoutError:
            pass
    with _model_directory(options.model_dir) as directory, _events(options) as events:
        engine = _engine(options)
        tokenizer = ChatTokenizer(directory)
        metrics = Metrics(options.model, engine, options.speed)
        driver = Driver(
            engine,
            metrics,
            speed=options.speed,
            waiting_max=options.max_num_queued_reqs,
            events=events,
            on_failure=options.kv_load_failure_policy,
        )
        driver.mover = _mover(options, engine, driver)
        served = _served(options, engine, tokenizer, driver.mover)
        server = Server(served, tokenizer, driver, metrics)
        if driver.mover is not None:
            from workers.sim.copying import Copier, routes

            driver.copier = Copier(driver, driver.mover, engine.block_tokens)
            server.app.add_routes(routes(driver.copier))
        runner = web.AppRunner(
            server.app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=GRACE_S,
        )
        await runner.setup()
        try:
            await _listen(runner, options)
            async with asyncio.TaskGroup() as tasks:
                background = [tasks.create_task(driver.run())]
                if events:
                    background.append(tasks.create_task(events[1].serve_replay()))
                if driver.mover is not None:
                    background.append(tasks.create_task(driver.mover.run()))
                await stopping.wait()
                driver.stop()
                await runner.cleanup()
                for task in background:
                    task.cancel()
        finally:
            await runner.cleanup()


def _engine(options: argparse.Namespace) -> Engine:
    try:
        profile = profile_of(options.profile, read_chips(options.hardware))
    except ValueError as error:
        raise CannotStart(str(error)) from error
    profile = replace(
        profile,
        max_num_seqs=options.max_num_seqs or profile.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens or profile.max_num_batched_tokens,
    )
    if profile.max_num_batched_tokens < profile.max_num_seqs:
        raise CannotStart(
            f"--max-num-batched-tokens {profile.max_num_batched_tokens} is less than "
            f"--max-num-seqs {profile.max_num_seqs}: every sequence needs one a step"
        )
    return Engine(
        profile,
        block_tokens=options.block_size,
        blocks=options.blocks,
        closed_form=False,
        speculation=options.speculative_config,
    )


def _mover(options: argparse.Namespace, engine: Engine, driver: Driver) -> Mover | None:
    if options.kv_port is None:
        return None
    from workers.sim.mover import Place, new_mover

    try:
        place = Place(
            options.host,
            options.kv_port,
            engine.profile.kv_token_bytes * engine.block_tokens,
            options.kv_lease_s,
            options.kv_bytes_per_s,
        )
        return new_mover(
            place, uuid.uuid4().hex, on_fetched=driver.fetched, on_released=driver.released
        )
    except OSError as error:
        raise CannotStart(
            f"cannot hand over KV blocks on {options.host}:{options.kv_port}: {error.strerror}"
        ) from error


def _served(
    options: argparse.Namespace, engine: Engine, tokenizer: ChatTokenizer, mover: Mover | None
) -> Served:
    total_tokens = engine.load().total_blocks * engine.block_tokens
    context_tokens = options.max_model_len or min(tokenizer.context_tokens, total_tokens)
    if context_tokens > total_tokens:
        raise CannotStart(
            f"--max-model-len {context_tokens} does not fit the KV cache of {total_tokens} "
            "tokens; lower it, or give more --blocks"
        )
    profile = engine.profile
    info: dict[str, object] = {
        "version": VERSION,
        "model": options.model,
        "profile": profile.name,
        "speed": options.speed,
        "block_size": engine.block_tokens,
        "num_gpu_blocks": engine.load().total_blocks,
        "max_model_len": context_tokens,
        "max_num_seqs": profile.max_num_seqs,
        "max_num_batched_tokens": profile.max_num_batched_tokens,
    }
    if mover is not None:
        host, port = mover.address
        info["kv_transfer"] = {
            "connector": "sim-tcp",
            "order": "overlapped" if options.kv_overlapped else "prefill_first",
            "dtype": "auto",
            "layout": profile.name,
            "tensor_parallel": 1,
            "block_bytes": profile.kv_token_bytes * engine.block_tokens,
            "lease_s": options.kv_lease_s,
            "copies": True,
            "bootstrap": f"{host}:{port}",
        }
    return Served(options.model, context_tokens, info)


@contextmanager
def _model_directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="workers-sim-") as directory:
        write_model(Path(directory))
        yield Path(directory)


@contextmanager
def _events(options: argparse.Namespace) -> Iterator[tuple[EventEncoder, EventPublisher] | None]:
    if options.events_port is None:
        yield None
        return
    replay = options.replay_port
    try:
        publisher = EventPublisher(
            f"tcp://{options.host}:{options.events_port}",
            None if replay is None else f"tcp://{options.host}:{replay}",
            options.event_topic,
        )
    except OSError as error:
        raise CannotStart(
            f"cannot publish KV events on {error.filename}: {error.strerror}"
        ) from error
    try:
        yield (
            EventEncoder(options.block_size, options.event_format, options.hash_format),
            publisher,
        )
    finally:
        publisher.close()


async def _listen(runner: web.AppRunner, options: argparse.Namespace) -> None:
    try:
        await web.TCPSite(runner, options.host, options.port).start()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise CannotStart(f"cannot listen on {options.host}:{options.port}: {why}") from error
    host, port = runner.addresses[0][:2]
    sys.stdout.write(f"{options.model} ({options.profile}) on http://{host}:{port}\n")
    sys.stdout.flush()


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _speculation(text: str) -> Speculation:
    try:
        return msgspec.json.decode(text, type=Speculation)
    except (msgspec.DecodeError, BadSpeculation) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run the engine; returns the exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        uvloop.run(serve(options))
    except (CannotStart, BadModelDirectory) as error:
        sys.stderr.write(f"workers.sim: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
