"""What a stage read and made, for OpenLineage: said only where Airflow's provider for it is installed.

sources ─► <loop>/snapshot ─► <loop>/features ─► <loop>/candidate ─► <loop>/verdict ─► <loop>/release ─► <loop>/champion

Sources are named as OpenLineage names files and buckets; records lie in the namespace of the store, with the record's
id as the version. No name holds a user, a password or a query.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from treadle.errors import TreadleError

if TYPE_CHECKING:
    from treadle.loop import Loop
    from treadle.records import Record
    from treadle.session import Session

_READS_SOURCES = ("prepare", "monitor")


@dataclass(frozen=True, slots=True)
class Named:
    """A dataset: `version` is a record's id, or a model's digest."""

    namespace: str
    name: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a task read and what it made."""

    inputs: tuple[Named, ...]
    outputs: tuple[Named, ...]


class TellsLineage:
    """An operator that notes its `lineage` when its work is done; Airflow's OpenLineage provider asks for it."""

    lineage: Lineage | None = None

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """The inputs and outputs as the provider wants them; None where nothing was made."""
        return facets_of(self.lineage) if self.lineage else None


def lineage_of(session: Session, record: Record, inputs: Mapping[str, str]) -> Lineage:
    """What stands before and behind a record.

    Args:
        session: The session that made or found the record.
        record: The stage's.
        inputs: Earlier stage to the id of its record.
    """
    from treadle.records import STAGE_OF

    kinds = {stage: kind for kind, stage in STAGE_OF.items()}
    store, loop = place_of(session.store.uri), session.loop.name
    namespace = store[0] if store[0] != "file" else f"file:{store[1]}"
    read = [Named(namespace, f"{loop}/{kinds[stage]}", id_) for stage, id_ in inputs.items()]
    if STAGE_OF[record.kind] in _READS_SOURCES:
        read += _sources(session.loop)
    made = [Named(namespace, f"{loop}/{record.kind}", record.id)]
    serves = getattr(record, "candidate", None)
    if record.kind == "deployment" and serves:
        track = "" if session.track == "production" else f"/{session.track}"
        made.append(Named(namespace, f"{loop}{track}/champion", serves))
    return Lineage(tuple(read), tuple(made))


def _sources(loop: Loop) -> Iterator[Named]:
    for name in sorted(loop.data.sources):
        try:
            yield Named(*place_of(loop.source_uri(name)))
        except TreadleError:  # its address is known only where the stage ran
            yield Named("treadle", f"{loop.name}/sources/{name}")


def place_of(uri: str) -> tuple[str, str]:
    """Namespace and name of a file, as OpenLineage has them.

    >>> place_of("s3://key:secret@bucket/a/b.csv?X-Amz-Signature=5f")
    ('s3://bucket', 'a/b.csv')
    >>> place_of("/data/orders.csv")
    ('file', '/data/orders.csv')
    """
    if "://" not in uri:
        return "file", uri
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return "file", parts.path
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.lstrip("/") or "/"


def facets_of(lineage: Lineage) -> Any:
    """The provider's OperatorLineage; None where the provider isn't installed."""
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage  # type: ignore[import-not-found,unused-ignore]
        from openlineage.client.event_v2 import Dataset  # type: ignore[import-not-found,unused-ignore]
        from openlineage.client.facet_v2 import dataset_version_dataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None

    def dataset(named: Named) -> Any:
        if named.version is None:
            return Dataset(named.namespace, named.name)
        version = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=named.version)
        return Dataset(named.namespace, named.name, facets={"version": version})

    inputs, outputs = ([dataset(named) for named in several] for several in (lineage.inputs, lineage.outputs))
    return OperatorLineage(inputs=inputs, outputs=outputs)
