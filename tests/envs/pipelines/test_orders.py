"""Orders of a pipeline: lists that are complete, never wait for each other, and are PyTorch's own."""

import pytest

from envs.pipelines.orders import KINDS, Action, check_lists, lists_of, parse_action, stuck_at
from graphs.errors import InputError


def texts(rows: list[list[Action]]) -> list[str]:
    return [" ".join(map(str, row)) for row in rows]


def test_small_lists_by_hand() -> None:
    assert texts(lists_of("gpipe", [0, 1], 2)) == ["0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1"]
    assert texts(lists_of("1f1b", [0, 1], 3)) == ["0F0 0F1 0B0 0F2 0B1 0B2", "1F0 1B0 1F1 1B1 1F2 1B2"]
    assert texts(lists_of("zb_h1", [0, 1], 3)) == [
        "0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2",
        "1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2",
    ]
    assert texts(lists_of("interleaved", [0, 1, 0, 1], 2)) == [
        "0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1",
        "1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1",
    ]


@pytest.mark.parametrize("order", ["gpipe", "1f1b", "zb_h1", "interleaved"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8, 16, 24])
def test_lists_hold_each_action_once_and_come_to_their_end(order: str, ranks: int, micro_batches: int) -> None:
    stages = [i % ranks for i in range(2 * ranks if order == "interleaved" else ranks)]
    if order == "interleaved" and micro_batches > ranks and micro_batches % (micro_batches // ranks):
        with pytest.raises(InputError, match="take a multiple of"):
            lists_of(order, stages, micro_batches)
        return
    check_lists(lists_of(order, stages, micro_batches), stages, micro_batches)


@pytest.mark.parametrize(("ranks", "each", "micro_batches"), [(2, 2, 4), (4, 2, 8), (4, 3, 8), (2, 3, 2), (3, 1, 6)])
@pytest.mark.parametrize("zero_bubble", [False, True])
def test_lists_are_those_of_pytorch(ranks: int, each: int, micro_batches: int, zero_bubble: bool) -> None:
    from torch.distributed.pipelining import schedules

    if zero_bubble and each > 1:
        pytest.skip("zb_h1 has one stage a rank")
    order = "zb_h1" if zero_bubble else "interleaved"
    rounds = max(1, micro_batches // ranks)
    at_once = micro_batches // rounds
    for rank, own in enumerate(lists_of(order, [i % ranks for i in range(ranks * each)], micro_batches)):
        ahead = min((each - 1) * at_once + (1 if zero_bubble else 2) * (ranks - 1 - rank), micro_batches * each)
        both = micro_batches * each - ahead
        theirs = schedules._get_1f1b_rank_ops(
            each,
            ranks,
            ahead,
            both,
            ahead,
            rank,
            lambda op, rank=rank: op // at_once % each * ranks + rank,
            lambda op, rank=rank, ahead=ahead: (each - 1 - (op - ahead) // at_once % each) * ranks + rank,
            rank,
            zero_bubble,
        )
        said = [str(action) for action in theirs if action is not None]
        assert said == [str(action) for action in own]


def test_lists_that_are_not_whole_are_refused() -> None:
    good = lists_of("1f1b", [0, 1], 2)
    for rows, message in (
        ([good[0][:-1], good[1]], "must run 0F1"),
        ([good[0] + good[0][-1:], good[1]], "0B1 twice"),
        ([good[0] + good[1][-1:], good[1][:-1]], "but stage 1 is on rank 1"),
        ([good[0]], "lists for 1 ranks"),
        ([[*good[0], Action(0, 0, 9)], good[1]], "2 micro-batches"),
        ([good[0][::-1], good[1]], "0B1 can never start"),
    ):
        with pytest.raises(InputError, match=message):
            check_lists(rows, [0, 1], 2)
    assert stuck_at(good, 2) is None


def test_actions_as_texts() -> None:
    for kind in KINDS:
        assert str(parse_action(f"3{kind}11")) == f"3{kind}11"
    for text in ("", "F0", "2X0", "2F", "-1F0", "2F0 "):
        with pytest.raises(InputError, match="is no action"):
            parse_action(text)


@pytest.mark.parametrize("order", ["gpipe", "1f1b", "zb_h1"])
def test_orders_with_one_stage_a_rank_refuse_others(order: str) -> None:
    with pytest.raises(InputError, match="stage i on rank i"):
        lists_of(order, [0, 1, 0], 4)
