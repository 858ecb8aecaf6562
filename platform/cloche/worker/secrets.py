"""A job's secrets in its worker's hands: fetched when its plugin is ready for it, sent, and looked for in all that it says from then on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from cloche.domain.jobs import ClaimedJob
from cloche.domain.masks import Masks
from cloche.isolation.egress import EgressReport
from cloche.registry.manifest import Manifest
from cloche.services.secret_delivery import SecretDelivery


class JobSecrets:
    """Shared by a worker's slots."""

    def __init__(self, manifest: Callable[[ClaimedJob], Manifest], delivery: SecretDelivery) -> None:
        self._manifest = manifest
        self._delivery = delivery

    def named(self, job: ClaimedJob) -> bool:
        """Whether the job's plugin names any.

        Raises:
            PlatformFailure: ``bundle_unavailable``.
        """
        return bool(self._manifest(job).secrets)

    def deliver(self, job: ClaimedJob) -> Mapping[str, str]:
        """See :meth:`SecretDelivery.deliver`."""
        return self._delivery.deliver(job, self._manifest(job))


def masked_report(masks: Masks, report: EgressReport) -> EgressReport:
    """What the job connected to, masked: a name that it asked for may hold anything."""
    if not masks:
        return report
    shown = tuple(one if one.host is None else replace(one, host=masks.text(one.host)) for one in report.connections)
    return replace(report, connections=shown)
