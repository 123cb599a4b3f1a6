"""A run in TensorBoard's HParams tab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FIRST = ("data", "estimator", "inference.steps", "model", "seed")
"""Settings whose columns stand first and are shown without being asked for: five. TensorBoard sorts them itself."""


def summaries(chosen: Mapping[str, Any], metrics: Sequence[str]) -> list[Any]:
    """What one run writes: the columns of the tab, and the run's own settings.

    TensorBoard takes the columns from any one of the runs that it shows, so each has those of all kinds of runs.

    Arguments:
        chosen: every column's setting, a number or a word; None: this run has no such setting.
        metrics: tags of the scalars that are columns, those of other kinds of runs included.
    """
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
    from torch.utils.tensorboard.summary import hparams

    # SummaryWriter.add_hparams would open a second events file. Its columns are this run's alone: ours replace them.
    experiment, start, end = hparams({name: value for name, value in chosen.items() if value is not None}, {})
    kinds = {name: "STRING" if isinstance(value, str) else "FLOAT64" for name, value in chosen.items()}
    columns = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=api_pb2.DataType.Value(f"DATA_TYPE_{kind}"), differs=name in FIRST)
            for name, kind in kinds.items()
        ],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics],
    )
    place = experiment.value[0].metadata.plugin_data
    content = plugin_data_pb2.HParamsPluginData.FromString(place.content)
    content.experiment.CopyFrom(columns)
    place.content = content.SerializeToString()
    return [experiment, start, end]
