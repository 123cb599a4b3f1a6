"""TensorBoard's HParams tab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN_BY_DEFAULT = ("data", "estimator", "inference.steps", "model", "seed")
"""The five settings whose columns come first and are shown by default, in TensorBoard's sort order."""


def hparams_summaries(settings: Mapping[str, Any], metrics: Sequence[str]) -> list[Any]:
    """Create the HParams summaries of a run: the columns of the tab, and the run's settings.

    TensorBoard takes the columns from one of the runs it shows, so each run declares those of all model families.

    Arguments:
        settings: value of each column, a number or a string; None: not applicable to this run.
        metrics: tags of the scalars that are columns, including those of other model families.
    """
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
    from torch.utils.tensorboard.summary import hparams

    # SummaryWriter.add_hparams would open a second event file. torch only declares this run's columns: replace them.
    experiment, start, end = hparams({name: value for name, value in settings.items() if value is not None}, {})
    string, number = (api_pb2.DataType.Value(f"DATA_TYPE_{name}") for name in ("STRING", "FLOAT64"))
    types = {name: string if isinstance(value, str) else number for name, value in settings.items()}
    columns = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=data_type, differs=name in SHOWN_BY_DEFAULT)
            for name, data_type in types.items()
        ],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics],
    )
    plugin_data = experiment.value[0].metadata.plugin_data
    content = plugin_data_pb2.HParamsPluginData.FromString(plugin_data.content)
    content.experiment.CopyFrom(columns)
    plugin_data.content = content.SerializeToString()
    return [experiment, start, end]
