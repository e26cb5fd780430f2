"""The board: what it makes of words, and that it forgets."""

from __future__ import annotations

from controlplane.console import board as board_module
from controlplane.console.board import FLIGHT_SILENCE_S, LATEST_MAX, PER_BEAT_MAX, Board
from controlplane.console.frames import Frame
from controlplane.console.settings import ConsoleSettings
from proto.decisions import Decision
from proto.ids import RequestId, WorkerId
from proto.load import LoadReport
from proto.progress import Phase, Progress
from proto.records import RequestRecord
from proto.route import Term
from proto.transfers import State, Step, TicketId, Transition
from proto.workers import Hardware, WorkerRecord
from tests.unit.controlplane.registry.records import worker

W1, W2 = WorkerId("w1"), WorkerId("w2")


def new_board() -> Board:
    return Board(window_s=10.0, points_max=100)


def frame(board: Board, now_s: float = 0.0) -> Frame:
    return board.frame(now_s, 1_000.0 + now_s, ready=1, connected=True)


def step(request: str, phase: Phase, attempt: int = 1, on: WorkerId = W1) -> Progress:
    return Progress(RequestId(request), on, attempt, phase)


def ended(request: str, **facts: object) -> RequestRecord:
    whole = {
        "request": RequestId(request),
        "model": "sim",
        "tenant": "",
        "slo_class": "",
        "arrived_s": 0.0,
        "outcome": "completed",
        "prompt_tokens": 100,
    }
    return RequestRecord(**{**whole, **facts})  # type: ignore[arg-type]


def load(on: WorkerId = W1, **facts: int) -> LoadReport:
    whole = {
        "running": 0, "waiting": 0, "queued_prefill_tokens": 0, "decode_kv_tokens": 0,
        "used_blocks": 0, "total_blocks": 100, "kv_sequence": 0, "live_blocks": 0, "digest": 0,
    }  # fmt: skip
    return LoadReport(worker=on, **{**whole, **facts})  # type: ignore[arg-type]


def records(*all_of_them: WorkerRecord) -> dict[WorkerId, WorkerRecord]:
    return {record.worker: record for record in all_of_them}


def test_a_request_is_in_prefill_until_its_first_token_and_gone_when_it_ends() -> None:
    board = new_board()
    board.saw_progress(step("a", Phase.DISPATCHED), 1.0)
    assert [(f.phase, f.ttft_s) for f in frame(board, 2.0).flights] == [("prefill", None)]
    board.saw_progress(step("a", Phase.FIRST_TOKEN), 2.5)
    assert [(f.phase, f.age_s, f.ttft_s) for f in frame(board, 3.0).flights] == [
        ("decode", 2.0, 1.5)
    ]
    board.saw_progress(step("a", Phase.ENDED), 4.0)
    assert frame(board, 4.0).flights == ()


def test_another_attempt_takes_a_request_to_another_worker_and_the_old_end_does_not_end_it() -> (
    None
):
    board = new_board()
    board.saw_progress(step("a", Phase.DISPATCHED), 1.0)
    board.saw_progress(step("a", Phase.DISPATCHED, attempt=2, on=W2), 2.0)
    board.saw_progress(step("a", Phase.ENDED, attempt=1), 2.1)
    (flight,) = frame(board, 3.0).flights
    assert (flight.worker, flight.attempt, flight.age_s) == (W2, 2, 1.0)


def test_a_request_that_nobody_speaks_of_is_forgotten() -> None:
    board = new_board()
    board.saw_progress(step("a", Phase.DISPATCHED), 0.0)
    assert frame(board, FLIGHT_SILENCE_S).point["in_flight"] == 1
    assert frame(board, FLIGHT_SILENCE_S + 0.1).point["in_flight"] == 0


def test_columns_are_in_the_order_of_the_fleet_and_2_comes_before_10() -> None:
    board = new_board()
    fleet = board.fleet(records(worker("w10"), worker("w2")), stale=False)
    assert [w.worker for w in fleet.workers] == ["w2", "w10"]
    board.saw_load(load(WorkerId("w10"), running=7, used_blocks=25), 0.0)
    columns = frame(board).columns
    assert columns.running == (0, 7)
    assert columns.kv_used == (0.0, 0.25)
    assert columns.silent_s == (-1.0, 0.0)


def test_workers_of_a_pool_stand_by_their_place() -> None:
    def at(name: str, rack: str) -> WorkerRecord:
        hardware = Hardware(topology={"rack": rack})
        return worker(name).model_copy(update={"hardware": hardware})

    fleet = new_board().fleet(records(at("w1", "b"), at("w2", "a"), at("w3", "b")), stale=False)
    assert [w.worker for w in fleet.workers] == ["w2", "w1", "w3"]


def test_a_worker_that_has_left_is_forgotten() -> None:
    board = new_board()
    board.fleet(records(worker("w1")), stale=False)
    board.saw_load(load(running=3), 0.0)
    board.fleet({}, stale=False)
    assert frame(board).point["running"] == 0
    assert board.activity == {}


def test_hit_rates_are_of_late_and_begin_anew_with_the_engine() -> None:
    board = new_board()
    board.fleet(records(worker("w1")), stale=False)
    board.saw_load(load(cached_tokens=0, queried_tokens=100), 0.0)
    board.saw_load(load(cached_tokens=50, queried_tokens=200), 1.0)
    seen = frame(board, 1.0)
    assert (seen.columns.hit_rate, seen.point["hit_rate"]) == ((0.5,), 0.5)
    board.saw_load(load(cached_tokens=0, queried_tokens=0), 2.0)
    assert frame(board, 2.0).columns.hit_rate == (None,)


def test_a_point_tells_rates_tails_and_both_hit_rates_of_the_window() -> None:
    board = new_board()
    for n in range(20):
        board.saw_end(
            ended(
                f"r{n}", ttft_ms=float(n + 1), tpot_ms=10.0, output_tokens=5, cached_tokens=40,
                predicted_cached_tokens=30, worker=W1,
            ),
            1.0,
        )  # fmt: skip
    board.saw_end(ended("bad", outcome="engine_failed"), 2.0)
    point = frame(board, 5.0).point
    assert point["requests_per_s"] == 2.1
    assert point["failed_per_s"] == 0.1
    assert (point["ttft_p50_ms"], point["ttft_p95_ms"]) == (10.0, 19.0)
    assert point["predicted_hit_rate"] == 0.3
    later = frame(board, 11.5).point
    assert (later["requests_per_s"], later["ttft_p95_ms"]) == (0.1, None)


def test_what_is_new_is_said_once_and_what_there_is_too_much_of_is_cut() -> None:
    board = new_board()
    for n in range(LATEST_MAX + 5):
        board.saw_end(ended(f"r{n}"), 0.0)
        board.saw_decision(Decision(RequestId(f"r{n}"), 1, "sim", "r", "kv", 0.0, 1, W1), 0.0)
    first, second = frame(board), frame(board)
    assert len(first.ended) == len(first.decisions) == PER_BEAT_MAX
    assert (second.ended, second.decisions) == ((), ())
    assert len(board.ended) == len(board.decisions) == LATEST_MAX


def test_of_a_decision_with_many_candidates_the_best_and_the_chosen_one_are_kept() -> None:
    board = new_board()
    terms = tuple(Term(WorkerId(f"w{n}"), float(n)) for n in range(50))
    decision = Decision(RequestId("a"), 1, "sim", "r", "kv", 0.0, 1, WorkerId("w40"), terms=terms)
    board.saw_decision(decision, 0.0)
    (told,) = board.decisions
    assert [term.worker for term in told.terms] == [*(f"w{n}" for n in range(12)), "w40"]


def test_curves_have_a_value_for_every_beat_and_an_end() -> None:
    board = Board(window_s=10.0, points_max=3)
    for n in range(5):
        frame(board, float(n))
    curves = board.history.curves()
    assert curves["time_s"] == [1_002.0, 1_003.0, 1_004.0]
    assert {len(curve) for curve in curves.values()} == {3}


def test_more_requests_than_can_be_followed_push_out_the_oldest() -> None:
    board = new_board()
    for n in range(board_module.FLIGHTS_MAX + 3):
        board.saw_progress(step(f"r{n}", Phase.DISPATCHED), 0.0)
    assert board.in_flight == board_module.FLIGHTS_MAX
    assert frame(board).flights[0].request == "r3"


def test_the_page_is_on_this_machine_only_unless_told_otherwise() -> None:
    assert ConsoleSettings().host == "127.0.0.1"


def transition(sequence: int, before: State, after: State, **facts: object) -> Transition:
    whole = {
        "ticket": TicketId("t"), "request": RequestId("a"), "sequence": sequence,
        "step": Step.LAND, "before": before, "after": after, "prefill": W1,
        "prefill_incarnation": 1, "decode": W2, "decode_incarnation": 1, "at_s": float(sequence),
    }  # fmt: skip
    return Transition(**{**whole, **facts})  # type: ignore[arg-type]


def test_a_movement_is_told_when_it_changes_and_late_words_do_not_turn_it_back() -> None:
    board = new_board()
    board.saw_transition(transition(1, State.PLANNED, State.RESERVED), 0.0)
    board.saw_transition(transition(3, State.TRANSFERRING, State.LANDED, kv_bytes=7), 0.0)
    board.saw_transition(transition(2, State.RESERVED, State.TRANSFERRING), 0.0)
    (moved,) = frame(board).transfers
    assert (moved.state, moved.began_s, moved.changed_s, moved.kv_bytes) == ("landed", 1.0, 3.0, 7)
    assert frame(board).transfers == ()
    assert len(board.movements.all()) == 1


def test_of_a_movement_that_failed_it_is_known_how_far_it_had_come() -> None:
    board = new_board()
    board.saw_transition(transition(1, State.STAGED, State.EXPIRED, cause="lease"), 0.0)
    (moved,) = board.movements.all()
    assert (moved.state, moved.reached, moved.cause) == ("expired", "staged", "lease")
