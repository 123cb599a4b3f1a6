"""The HParams tab as TensorBoard's own plug-in builds it from several runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vaerun.config.schema import Settings
from vaerun.run.result import hparams_metrics, hyperparameters
from vaerun.tracking.hparams import SHOWN_BY_DEFAULT, hparams_summaries
from vaerun.tracking.tensorboard import EventWriter


def settings(model: str, inference: dict[str, Any] | None, family: str = "likelihood") -> Settings:
    settings = SimpleNamespace(name=model, latent_dim=2, likelihood="gaussian", family=family, inference=inference)
    trainer = SimpleNamespace(epochs=3, max_steps=None, batch_size=8, learning_rate=0.5)
    named = {name: SimpleNamespace(name=name) for name in ("data", "estimator")}
    return SimpleNamespace(model=settings, trainer=trainer, seed=4, **named)  # type: ignore[return-value]


def write(folder: Path, settings: Settings, metrics: dict[str, float]) -> None:
    from torch.utils.tensorboard.summary import scalar

    folder.mkdir()
    events = EventWriter(folder, 0)
    for name, value in metrics.items():
        events.add(scalar(name, value))
    for summary in hparams_summaries(hyperparameters(settings), hparams_metrics(metrics, "test")):
        events.add(summary)
    events.close()


def tab(folder: Path) -> tuple[Any, list[Any]]:
    """The experiment and the session groups of TensorBoard's plug-in."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context, request = backend_context.Context(TBContext(data_provider=provider, logdir=str(folder))), RequestContext()
    metadata = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(request, "", True, metadata, [])
    session_request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN]
    )
    session_request.col_params.add(hparam="model", order=api_pb2.ORDER_ASC)
    for metric in experiment.metric_infos:
        session_request.col_params.add(metric=metric.name)
    groups = list_session_groups.Handler(request, context, "", session_request).run().session_groups
    return experiment, list(groups)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_runs_of_all_kinds_have_their_columns(tmp_path: Path, order: tuple[int, int, int]) -> None:
    """TensorBoard takes the columns from whichever run it finds first."""
    runs = [
        (settings("gan", None, "adversarial"), {"test/diversity": 0.5, "test/diversity_se": 0.1}),
        (settings("vae", {}), {"test/log_likelihood": -3.0, "test/elbo": -4.0, "test/kl": 1.5}),
        (settings("vlae", {"steps": 2}), {"test/log_likelihood": -2.0, "test/elbo": -2.5, "test/kl": 2.5}),
    ]
    for place, number in enumerate(order):
        write(tmp_path / f"run{place}", *runs[number])
    experiment, groups = tab(tmp_path)
    names = [info.name for info in experiment.hparam_infos]
    assert names[: len(SHOWN_BY_DEFAULT)] == sorted(SHOWN_BY_DEFAULT)
    assert {"latent_dim", "epochs", "max_steps", "likelihood"} < set(names)
    assert {"test/log_likelihood", "test/elbo", "test/diversity"} <= {m.name.tag for m in experiment.metric_infos}
    assert "test/diversity_se" not in {m.name.tag for m in experiment.metric_infos}
    shown = []
    for group in groups:
        values = {name: value.number_value or value.string_value for name, value in group.hparams.items()}
        assert (values["seed"], values["epochs"], "max_steps" in values) == (4, 3, False)
        numbers = {m.name.tag: m.value for m in group.metric_values}
        shown.append((values["model"], values.get("inference.steps"), numbers.get("test/log_likelihood")))
        assert numbers.get("test/diversity") == (0.5 if values["model"] == "gan" else None)
    assert shown == [("gan", None, None), ("vae", None, -3.0), ("vlae", 2, -2.0)]
