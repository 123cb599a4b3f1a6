"""What ranks exchange; and a single process, for which every collective is a no-op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from vaerun import randomness
from vaerun.distributed.collectives import Ranks, digest
from vaerun.distributed.process_group import process_group
from vaerun.errors import InputError


def test_reduction_by_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a peer that sends the same values everything doubles, and a missing gradient stays missing."""
    sent: list[Tensor] = []

    def all_reduce(flat: Tensor) -> None:
        sent.append(flat.clone())
        flat.mul_(2)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    dtypes = [torch.bfloat16, torch.float64, torch.float32, torch.float32]
    parameters = [nn.Parameter(torch.ones(2, 3, dtype=dtype)) for dtype in dtypes]
    for i, parameter in enumerate(parameters[:3]):
        parameter.grad = torch.full_like(parameter, 1.5 + i)
    loss = Ranks(1, 2).all_reduce_gradients(parameters, torch.tensor(0.75, dtype=torch.float32))
    assert float(loss) == 1.5
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert [flat.dtype for flat in sent] == [torch.float32, torch.float64]
    assert [len(flat) for flat in sent] == [3 + 1 + 3 * 6, 6]
    for i, parameter in enumerate(parameters[:3]):
        assert parameter.grad is not None
        assert parameter.grad.dtype == dtypes[i]
        assert torch.equal(parameter.grad, torch.full_like(parameter, 3 + 2 * i))
    assert parameters[3].grad is None


def test_words_of_the_step_before_on_a_gpu() -> None:
    ranks = Ranks(0, 3)
    ranks._lag = 1
    waited: list[int] = []

    def step(*requests: float) -> tuple[int | None, bool]:
        ranks._requests = torch.tensor(requests), lambda: waited.append(len(waited))
        return ranks.pending_requests()

    assert step(0, 15, 0, 0) == (None, False)
    assert waited == []
    assert step(0, 15, 10, 1) == (15, False)
    assert waited == [0]
    assert ranks.pending_requests() == (15, True)  # a pass that only validates; of several signals the lowest rank's
    assert ranks.pending_requests() == (None, False)
    assert step(0, 0, 0, 1) == (None, False)
    assert step(0, 0, 0, 1) == (None, True)  # and drops this step's request, which that checkpoint serves
    assert step(0, 0, 0, 0) == (None, False)


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group("mps") as ranks:
        assert (ranks.rank, ranks.size, ranks.device) == (0, 1, None)
    loss, values = torch.ones(()), {"elbo": torch.ones(())}
    assert ranks.all_reduce_gradients([], loss) is loss
    assert ranks.sum(values)["elbo"] is values["elbo"]
    assert ranks.on_rank_zero(lambda: loss) is loss
    ranks.assert_ranks_equal(lambda: pytest.fail("nothing to compare with"))
    ranks.barrier()
    with ranks.shard(3) as share:
        assert randomness._context.batch_slice is None
    x = torch.rand(3)
    assert torch.equal(share.mean(x), x.mean())
    assert torch.equal(share.sum(x), x.sum())


@pytest.mark.parametrize(("device", "words"), [("mps", "cpu or cuda, not mps"), ("cuda", "this machine has 1 GPUs")])
def test_devices_that_there_are_not(device: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=words), process_group(device):
        pytest.fail("joined")


def test_digest_sees_every_bit() -> None:
    one = {"a": torch.arange(3.0), "b": [torch.tensor(2), {"lr": 0.1}], "c": torch.tensor(True)}
    assert digest(one) == digest({"a": torch.arange(3.0), "b": [torch.tensor(2), {"lr": 0.1}], "c": torch.tensor(True)})
    others = [
        one | {"a": torch.tensor([0.0, 1.0, 2.0 + 1e-15])},
        one | {"a": torch.arange(3)},
        one | {"a": torch.arange(3.0).view(1, 3)},
        one | {"b": [torch.tensor(2), {"lr": 0.2}]},
        one | {"c": torch.tensor(False)},
        {"z": one["a"], "b": one["b"], "c": one["c"]},
        one | {"a": torch.tensor([-0.0, 1.0, 2.0])},
    ]
    assert len({digest(thing) for thing in [one, *others]}) == len(others) + 1
