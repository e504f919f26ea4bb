"""Storage commitment: the archive is asked whether it keeps what it took, and says so when it is sure.

It is asked by N-ACTION, after C-STORE; its report comes by N-EVENT-REPORT, over an association that it opens, or over
ours where it is that quick. Until then the segmentation stays here; what the archive does not keep is sent to it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pydicom import Dataset
from pydicom.uid import SegmentationStorage, generate_uid
from pynetdicom import build_context, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from polypseg.serve.dicom_network.send import FIRST_PAUSE, MOST_REFUSALS, Away, Refused, association_with, pause_after
from polypseg.serve.dicom_network.settings import DicomSettings, Node
from polypseg.serve.dicom_network.worklist import Object, Worklist
from polypseg.serve.log import LOGGER, without_values
from polypseg.serve.loop import Loop
from polypseg.serve.state import now

if TYPE_CHECKING:
    from pynetdicom.events import Event

log = logging.getLogger(LOGGER)

REPORT_SECONDS = 3600.0  # after which an archive that did not report is asked again
LOOK = 60.0  # seconds after which is checked for such
TOGETHER = 100  # segmentations that are asked for at once
SUCCESS, PROCESSING_FAILURE, INVALID = 0x0000, 0x0110, 0x0115
_DAY = 86400.0


class Committing:
    """Asks for commitment, and takes in the reports.

    Attributes:
        loop: the thread that asks.

    Args:
        settings: the AE to ask.
        worklist: what was stored there.
        to_send: called when there is a segmentation to be sent again.

    Raises:
        UsageError: the files for TLS cannot be used.
    """

    def __init__(self, settings: DicomSettings, worklist: Worklist, to_send: Callable[[], object]) -> None:
        assert settings.node is not None
        self._node: Node = settings.node
        self._title, self._tls = settings.title, settings.outgoing_tls()
        self._worklist, self._to_send = worklist, to_send
        self.loop = Loop("committing", self.step)
        self._failures = 0  # in a row, to be asked

    def step(self) -> float | None:
        """As ``Loop`` calls it; raises where the disk or the table refuses."""
        self._send_again()
        silent = now(-REPORT_SECONDS / _DAY)
        asking = self._worklist.select("state = 'stored' AND (asked IS NULL OR asked < ?)", silent, limit=TOGETHER)
        if asking:
            try:
                self._ask(asking)
            except (Away, Refused) as reason:
                pause = pause_after(self._failures)
                self._failures += 1
                fields = {"reason": str(reason), "waiting": len(asking), "again_in": pause}
                log.warning("cannot ask for commitment", extra={"fields": fields})
                return pause
            self._failures = 0
            return 0
        if self._worklist.select("state = 'uncommitted'", limit=1):
            return FIRST_PAUSE
        return LOOK if self._worklist.select("state = 'stored'", limit=1) else None

    def _ask(self, objects: list[Object]) -> None:
        """Raises ``Away`` or ``Refused``; then nothing was asked."""
        transaction = str(generate_uid())
        for one in objects:  # before the report can be there
            self._worklist.change(one.number, transaction_uid=transaction, asked=now())
        try:
            ask(self._node, self._title, self._tls, transaction, [str(one.instance) for one in objects], self.reported)
        except (Away, Refused):
            for one in objects:
                self._worklist.change(one.number, asked=None)
            raise
        log.info("commitment asked", extra={"fields": {"objects": [one.number for one in objects]}})

    def _send_again(self) -> None:
        """What is not kept there, when its pause is over."""
        for one in self._worklist.select("state = 'uncommitted'"):
            if str(one.ended) <= now(-pause_after(one.refusals - 1) / _DAY):
                self._worklist.change(one.number, state="segmented", ended=None)
                self._to_send()

    def reported(self, event: Event) -> tuple[int, None]:
        """Take in an N-EVENT-REPORT; the status that it is answered with."""
        try:
            return self._take_in(event.event_information), None
        except Exception as problem:  # noqa: BLE001  (whatever it is, the archive reports again)
            log.error("report failed", extra={"fields": without_values(problem)})
            return PROCESSING_FAILURE, None

    def _take_in(self, report: Dataset) -> int:
        transaction = str(report.get("TransactionUID", ""))
        asked = {str(one.instance): one for one in self._worklist.select("transaction_uid = ?", transaction)}
        if not transaction or not asked:
            return INVALID
        for item in report.get("ReferencedSOPSequence") or ():
            one = asked.get(str(item.get("ReferencedSOPInstanceUID")))
            if one is not None and one.state == "stored":
                self._worklist.end(one, "committed")
                log.info("segmentation committed", extra={"fields": {"object": one.number}})
        for item in report.get("FailedSOPSequence") or ():
            one = asked.get(str(item.get("ReferencedSOPInstanceUID")))
            if one is not None and one.state == "stored":
                self._fail(one, int(item.get("FailureReason") or PROCESSING_FAILURE))
        return SUCCESS

    def _fail(self, one: Object, reason: int) -> None:
        line = f"{self._node}: does not keep it (failure reason {reason:04X})"
        times = one.refusals + 1
        last = times >= MOST_REFUSALS
        self._worklist.change(one.number, refusals=times)
        if last:
            self._worklist.end(one, "undelivered", line)
        else:
            self._worklist.change(one.number, state="uncommitted", error=line, ended=now())
            self.loop.wake()
        fields = {"object": one.number, "reason": line, "times": times}
        log.error("segmentation given up" if last else "segmentation not committed", extra={"fields": fields})


def ask(
    node: Node, title: str, tls: Any, transaction: str, instances: Iterable[str], reported: Callable[[Event], Any]
) -> None:
    """Ask an AE whether it keeps segmentations. Raises ``Away`` or ``Refused``."""
    request = Dataset()
    request.TransactionUID = transaction
    request.ReferencedSOPSequence = []
    for instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = SegmentationStorage, instance
        request.ReferencedSOPSequence.append(item)
    contexts = [build_context(StorageCommitmentPushModel)]
    with association_with(node, title, tls, contexts, [(evt.EVT_N_EVENT_REPORT, reported)]) as association:
        try:
            status = association.send_n_action(
                request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )[0].get("Status")
        except (RuntimeError, ValueError) as error:
            raise Refused(f"{node}: has no storage commitment, or aborts the association") from error
        if status is None:
            raise Away(f"{node}: does not respond")
        if status:
            raise Refused(f"{node}: status {status:04X} to the request for commitment")
