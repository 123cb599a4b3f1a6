"""The HParams tab as TensorBoard's own plug-in builds it from several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from vaerun.config.plugins import builtin_config_dir
from vaerun.config.schema import Settings
from vaerun.config.settings import to_settings
from vaerun.run.hyperparameters import hyperparameters
from vaerun.tracking.hparams import hparams_summaries
from vaerun.tracking.tensorboard import EventWriter


def compose(*words: str) -> Settings:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        return to_settings(hydra.compose("config", list(words)))


def write(folder: Path, words: list[str], metrics: dict[str, float]) -> None:
    from torch.utils.tensorboard.summary import scalar

    folder.mkdir()
    events = EventWriter(folder, 0)
    for name, value in metrics.items():
        events.add(scalar(name, value))
    for summary in hparams_summaries(hyperparameters(compose(*words), words)):
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


def values_of(group: Any) -> dict[str, Any]:
    return {name: value.number_value or value.string_value for name, value in group.hparams.items()}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_runs_of_all_kinds_have_their_columns(tmp_path: Path, order: tuple[int, int, int]) -> None:
    """Whichever run TensorBoard finds first."""
    runs: list[tuple[list[str], dict[str, float]]] = [
        (["model=gan", "seed=4"], {"test/diversity": 0.5}),
        (["model=vae", "seed=4"], {"test/log_likelihood": -3.0, "test/elbo": -4.0}),
        (["model=vlae", "seed=4", "model.inference.steps=2"], {"test/log_likelihood": -2.0, "test/elbo": -2.5}),
    ]
    for place, number in enumerate(order):
        write(tmp_path / f"run{place}", *runs[number])
    experiment, groups = tab(tmp_path)
    differing = {info.name for info in experiment.hparam_infos if info.differs}
    same = {info.name for info in experiment.hparam_infos} - differing
    assert {"model", "latent_dim", "likelihood", "epochs", "learning_rate"} <= differing
    assert {"data", "seed", "batch_size"} <= same
    assert {"model.encoder.hidden", "model.generator.hidden"} <= differing | same
    assert {"test/log_likelihood", "test/elbo", "test/diversity"} <= {m.name.tag for m in experiment.metric_infos}
    shown = []
    for group in groups:
        values, numbers = values_of(group), {m.name.tag: m.value for m in group.metric_values}
        assert (values["seed"], "max_steps" in values) == (4, False)
        shown.append((values["model"], values.get("inference.steps"), numbers.get("test/log_likelihood")))
        assert numbers.get("test/diversity") == (0.5 if values["model"] == "gan" else None)
    assert shown == [("gan", None, None), ("vae", None, -3.0), ("vlae", 2, -2.0)]


@pytest.mark.parametrize(
    ("word", "other", "name", "shown"),
    [
        ("estimator.kl_weight=4", "estimator.kl_weight=1", "estimator.kl_weight", 4),
        ("model.encoder.hidden=[32,16]", "model.encoder.hidden=[64]", "model.encoder.hidden", "[32, 16]"),
        ("data.validation=100", "data.validation=140", "data.validation", 100),
        ("estimator.samples=1", "estimator.samples=5", "estimator.samples", 1),  # the schema's default
        ("seed=7", "seed=0", "seed", 7),
        ("seed=9007199254740993", "seed=9007199254740992", "seed", "9007199254740993"),  # one float64
        ("model.fixed_variance=0.5", "model.fixed_variance=null", "model.fixed_variance", 0.5),
        ("network=conv", "network=mlp", "network", "conv"),
        ("evaluation.amis.starts=4", "evaluation.amis.starts=8", "evaluation.amis.starts", 4),
        ("model=vae_full", "model=vae", "model", "vae_full"),
        ("experiment=iwae_mnist", "model=vae", "data", "mnist"),
    ],
)
def test_what_a_sweep_varies_or_a_run_sets_is_there(word: str, other: str, name: str, shown: Any) -> None:
    first, second = (hyperparameters(compose("model=vae", w), ["model=vae", w]) for w in (word, other))
    assert first != second
    plain = hparams_summaries({"value": first[name]})[0].value[0].metadata.plugin_data.content
    assert plain == hparams_summaries({"value": shown})[0].value[0].metadata.plugin_data.content
    texts = [hparams_summaries(values)[0].SerializeToString() for values in (first, second)]
    assert texts[0] != texts[1]


def test_files_of_one_name_are_told_apart() -> None:
    words = [["data=npz", f"data.path=/{name}.npz"] for name in "ab"]
    one, two = (hyperparameters(compose(*own), own) for own in words)
    assert (one["data"], one["data.path"]) == ("npz", "/a.npz")
    assert {key for key in one if one[key] != two[key]} == {"data.path"}


def test_settings_that_change_no_result_are_left_out() -> None:
    words = ["model=vae", "trainer.device=cpu", "sweep.jobs=2", "output_dir=x", "trainer.log_every=7"]
    assert hyperparameters(compose(*words), words) == hyperparameters(compose("model=vae"), ["model=vae"])
