"""How many rows a plan over conversations gives, counted on the cluster by packing all of it once.

A stage that goes through its conversations once or twice needs the number before it begins: it is
the length of the run. What is counted besides is told to the user.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from nanoray.data.plan import DataPlan
from nanoray.data.ray_data import data_context, plain_errors

UNITS_PER_TASK = 4
ROWS, TOKENS = "rows", "tokens"


@dataclass(frozen=True)
class RowCounter:
    """What a counting task needs to know."""

    plan: "ray.ObjectRef[DataPlan]"

    def count(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Pack the training units at the indices in the column `item`, and sum what they give."""
        plan: DataPlan = ray.get(self.plan)
        total: Counter[str] = Counter()
        for index in batch["item"].to_pylist():
            unit = plan.pack_unit(plan.units[index])
            total.update({ROWS: len(unit.rows), TOKENS: unit.num_tokens, **unit.counts})
        yield pa.table({"what": list(total), "count": pa.array(total.values(), pa.int64())})


def count_rows(plan: DataPlan) -> dict[str, int]:
    """Sum rows, tokens and what else is counted over the training units, with Ray Data."""
    data_context()
    tasks = -(-len(plan.units) // UNITS_PER_TASK)
    units = ray.data.from_items(list(range(len(plan.units))), override_num_blocks=tasks)
    counted = units.map_batches(
        RowCounter(ray.put(plan)).count, batch_size=None, batch_format="pyarrow"
    )
    total: Counter[str] = Counter()
    tables: Any = counted.iter_batches(
        batch_size=None, batch_format="pyarrow"
    )  # Any: as in feed.py
    with plain_errors():
        for table in tables:
            pairs = zip(table["what"].to_pylist(), table["count"].to_pylist(), strict=True)
            for what, count in pairs:
                total[what] += count
    return dict(total)
