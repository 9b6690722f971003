"""The pretrained policy: what answers and what learns agree, names of devices mean nothing, memory is heeded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from graphs.errors import InputError
from placement.pretrained.decode import decode, gumbel
from placement.pretrained.features import joined, read, voted
from placement.pretrained.network import EMBEDDING, Encoded, encode, initial, load, save, shapes
from placement.pretrained.policy import PretrainedPolicy, chosen, entropy
from tests.placement.pretrained.small import known, problem, wild


@pytest.mark.parametrize("seed", range(3))
def test_the_encoder_is_the_same_in_numpy_and_in_torch(seed: int) -> None:
    seen, weights = known(problem(seed)), wild(seed)
    plain, learning = encode(weights, seen.groups, seen.pairs), PretrainedPolicy(weights).encode(seen)
    np.testing.assert_allclose(plain.base, learning.base.detach().numpy(), atol=2e-4)
    np.testing.assert_allclose(plain.attention, learning.attention.detach().numpy(), atol=1e-5)
    sums = plain.attention.sum(axis=2)
    np.testing.assert_allclose(sums[:, 1:], 1.0, atol=1e-5)
    assert (np.triu(plain.attention) == 0).all()  # to those before only


@pytest.mark.parametrize("seed", range(4))
def test_what_is_decoded_is_what_torch_finds_likeliest(seed: int) -> None:
    seen, weights = known(problem(seed, resident_bytes=10**6)), wild(seed)
    encoded = encode(weights, seen.groups, seen.pairs)
    noise = gumbel(np.random.default_rng(seed), 3, seen)
    decoded = decode(weights, seen, encoded, noise, keep=True)
    tensors = Encoded(torch.from_numpy(encoded.base), torch.from_numpy(encoded.attention.astype(np.float32)))
    with torch.no_grad():
        said = PretrainedPolicy(weights).score(tensors, decoded)
    np.testing.assert_array_equal((said.numpy() + noise).argmax(axis=2), decoded.placements)
    logits = torch.log_softmax(torch.from_numpy(decoded.logits), dim=1).numpy()
    may = decoded.mask[:, -1]
    np.testing.assert_allclose(said[:, -1].numpy()[may], logits[may], atol=1e-4)
    assert torch.isfinite(entropy(said)).all()
    assert (chosen(said, decoded.placements) > -1e6).all()


def test_keeping_what_was_seen_changes_no_placement() -> None:
    seen, weights = known(problem()), wild(1)
    encoded = encode(weights, seen.groups, seen.pairs)
    noise = gumbel(np.random.default_rng(0), 8, seen)
    one, other = (decode(weights, seen, encoded, noise, keep=keep) for keep in (False, True))
    np.testing.assert_array_equal(one.placements, other.placements)
    np.testing.assert_array_equal(one.outlook_s, other.outlook_s)
    alone = decode(weights, seen, encoded, noise[5:6])
    np.testing.assert_array_equal(alone.placements[0], one.placements[5])


@pytest.mark.parametrize("seed", range(4))
def test_devices_that_are_alike_may_change_names(seed: int) -> None:
    seen, weights = known(problem(seed, count=4, resident_bytes=10**6)), wild(seed)
    rng = np.random.default_rng(seed)
    order = np.concatenate([[0], 1 + rng.permutation(4)])
    votes = seen.guide.picture.votes
    renamed = voted(seen, order[votes], seen.votes_s)
    target = rng.integers(0, 5, size=(3, seen.problem.num_groups))
    policy = PretrainedPolicy(weights)
    said = []
    for view, rows in ((seen, target), (renamed, order[target])):
        encoded = encode(weights, view.groups, view.pairs)
        decoded = decode(weights, view, encoded, gumbel(rng, 3, view), target=rows, keep=True)
        with torch.no_grad():
            said.append(policy.score(policy.encode(view), decoded).numpy())
    np.testing.assert_allclose(said[1][:, :, order], said[0], atol=1e-3)
    assert np.ptp(said[0][:, :, 1:], axis=2).max() > 0.1  # and yet it tells them apart by what stands there


def test_a_group_goes_where_its_residents_fit_as_long_as_there_is_such_a_device() -> None:
    placed = problem(3, resident_bytes=10**9, memory_bytes=2 * 10**9)
    resident, room = placed.group_resident_bytes, placed.cluster.memory_bytes
    seen = known(placed)
    crowded = 0
    for seed in range(6):
        weights = wild(seed)
        weights = {**weights, "skip": weights["skip"] * 5}
        encoded = encode(weights, seen.groups, seen.pairs)
        rows = decode(weights, seen, encoded, gumbel(np.random.default_rng(seed), 4, seen)).placements
        for row in rows:
            used = np.zeros(placed.num_devices, dtype=np.int64)
            for group, device in enumerate(row):
                fits = placed.allowed[group] & (used + resident[group] <= room)
                crowded += int(fits.sum() < placed.allowed[group].sum())
                assert fits[device] or not fits.any()
                used[device] += resident[group]
    assert crowded > 0  # some device was full


def test_one_set_of_weights_reads_any_number_of_groups_and_devices() -> None:
    weights = wild(0)
    for ops, count in ((1, 1), (7, 2), (30, 15)):
        seen = read(problem(ops=ops, count=count), [])
        rows = decode(
            weights, seen, encode(weights, seen.groups, seen.pairs), gumbel(np.random.default_rng(0), 2, seen)
        )
        assert rows.placements.shape == (2, ops)
        assert seen.problem.allowed[np.arange(ops), rows.placements].all()


def test_the_best_placements_are_the_votes_and_the_best_of_them_the_reference() -> None:
    seen = known(problem(5))
    assert (np.diff(seen.votes_s) >= 0).all()
    better = seen.guide.picture.votes[1:2].copy()
    more = joined(seen, better, np.array([seen.best_s / 2]))
    np.testing.assert_array_equal(more.guide.reference, better[0])
    assert more.best_s == seen.best_s / 2
    assert len(np.unique(more.guide.picture.votes, axis=0)) == len(more.guide.picture.votes)
    np.testing.assert_array_equal(seen.groups[:, :-2], more.groups[:, :-2])


def test_features_have_no_scale() -> None:
    """A cluster that does all of it a thousand times as fast looks the same."""
    slow = problem(2)
    fast = replace(
        slow,
        cluster=replace(
            slow.cluster,
            devices=tuple(
                replace(
                    device,
                    spec=replace(
                        device.spec,
                        peak_flops_per_s={name: 1e3 * rate for name, rate in device.spec.peak_flops_per_s.items()},
                        memory_bytes_per_s=1e3 * device.spec.memory_bytes_per_s,
                        launch_overhead_s=device.spec.launch_overhead_s / 1e3,
                    ),
                )
                for device in slow.cluster.devices
            ),
            links=tuple(
                replace(link, bytes_per_s=1e3 * link.bytes_per_s, latency_s=link.latency_s / 1e3)
                for link in slow.cluster.links
            ),
        ),
    )
    one, other = known(slow), known(fast)
    np.testing.assert_allclose(other.groups, one.groups, atol=1e-3)
    np.testing.assert_allclose(other.pairs, one.pairs, atol=1e-6)


def test_weights_are_written_and_read_back(tmp_path: Path) -> None:
    weights = wild(0)
    save(tmp_path / "w.safetensors", weights, {"seed": "0"})
    back = load(tmp_path / "w.safetensors")
    assert list(back) == list(shapes())
    for name in shapes():
        np.testing.assert_array_equal(back[name], weights[name])


def test_what_is_no_file_of_weights_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match="No such file"):
        load(path)
    save(path, initial(0), {})
    whole = path.read_bytes()
    for damaged in (b"", b"not weights", whole[: len(whole) // 2], b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="not a safetensors file, or it is damaged"):
            load(path)
    path.write_bytes(whole.replace(b"device-placement-policy", b"device-placement-polish"))
    with pytest.raises(InputError, match="not of version 1 of this policy"):
        load(path)
    with path.open("wb") as file:
        file.truncate(11 * 2**20)
    with pytest.raises(InputError, match="larger than 10 MiB"):
        load(path)


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("out", np.zeros(7, dtype=np.float32), r"weight 'out' is float32 of shape \[7\], not float32 of shape \[48\]"),
        ("out", np.zeros(48), "weight 'out' is float64"),
        ("out", np.full(48, np.nan, dtype=np.float32), "weight 'out' has numbers that are not finite"),
        ("more", np.zeros(1, dtype=np.float32), "it has a weight 'more'"),
        ("base", None, "it lacks a weight 'base'"),
    ],
)
def test_weights_of_another_policy_are_refused(tmp_path: Path, name: str, array: np.ndarray | None, said: str) -> None:
    from safetensors.numpy import save_file

    arrays = dict(initial(0))
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    path = tmp_path / "w.safetensors"
    save_file(arrays, path, {"format": "device-placement-policy", "version": "1"})
    with pytest.raises(InputError, match=said):
        load(path)


def test_the_policy_is_small() -> None:
    count = sum(int(np.prod(shape)) for shape in shapes().values())
    assert 20_000 < count < 200_000
    assert shapes()["base"][0] == EMBEDDING
