"""DICOM out: masks as a DICOM Segmentation that refers to the image they were made from.

Needs the extra: ``pip install 'polypseg[dicom]'``. What the source says of patient and study goes into the segmentation
and nowhere else: no message, warning or log line quotes it.
"""

from __future__ import annotations

import io
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polypseg.drawing import PREDICTION
from polypseg.errors import PolypsegError
from polypseg.files import atomic_write, disk_error, make_folder
from polypseg.io.dicom import positive, put, quiet, read_header
from polypseg.version import __version__

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.sr.coding import Code

SERIES_NUMBER = 9000  # behind the series that an examination has of its own
_LONGEST = 0xFFFFFFFE  # bytes that a DICOM element can have
_IN_MEMORY = 64 << 20  # bytes of masks; more are kept in a file beside the one that is written
# The order of a segmentation's frames: by segment, then by the source's frame. (element, its group, its name)
_DIMENSIONS = (
    (0x0062000B, 0x0062000A, "Segment"),  # ReferencedSegmentNumber of SegmentIdentificationSequence
    (0x00209128, 0x00209111, "Frame"),  # TemporalPositionIndex of FrameContentSequence
)


@dataclass(frozen=True)
class MadeBy:
    """What made the masks, as the segmentation names it.

    Attributes:
        name: the model's.
        hash: the model's; of an ensemble those of all, joined by ``+``.
        threshold: probability, 0..1, at and above which a pixel belongs to a region.
        min_confidence: a region's least confidence to be a polyp, 0..1.
        runtime: what computed it, as ``openvino``.
        precision: as ``fp32``.
    """

    name: str
    hash: str
    threshold: float
    min_confidence: float
    runtime: str
    precision: str


def write_segmentation(
    source: str | Path,
    masks: Iterable[NDArray[np.bool_]],
    made_by: MadeBy,
    out: str | Path,
    uid: str | None = None,
    plane: bool = False,
) -> None:
    """Write masks as a DICOM Segmentation (BINARY) that refers to the image they were made from.

    It keeps the patient and the study of its source and stands in a series of its own, the same one for all images
    of the source's series and one model. One segment, "Polyp", contains all polyps of a frame: which polyp of one frame
    is which of another is not known. Frames without a polyp are left out, as DICOM lets; where no frame has one, the
    first stands for all, empty. A frame of reference is the source's: without one, as a camera has it, there is none.

    Args:
        source: the DICOM image.
        masks: of every frame of ``source``, in order, each H×W bool. One at a time is in memory, and some of its bits.
        made_by: what made them, which is recorded.
        out: the file to write; replaced where it exists.
        uid: its SOP Instance UID; by default a new one.
        plane: place the frames in a plane that is made up, pixels of 1 mm at the origin of a frame of reference of
            their own: viewers made for CT and MR show nothing without.

    Raises:
        PolypsegError: the source is no DICOM image, is missing the identifiers that a reference needs or is of a kind
            that the standard does not know; the extra is missing; the masks do not fit into a DICOM file; the disk is
            full.
        ValueError: there are more or fewer masks than frames, or one is not H×W bool.
    """
    source, out = Path(source), Path(out)
    with quiet(source, "its header is damaged; copy the file again"):
        header = read_header(source)
        needed = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
        if missing := [name for name in needed if not header.get(name)]:
            lacks = f"is missing {', '.join(missing)}"
            raise PolypsegError(
                f"{source}: {lacks}, to which a segmentation must refer; export it with its identifiers"
            )
        count, height, width = (positive(source, header, name) for name in ("NumberOfFrames", "Rows", "Columns"))
    try:
        make_folder(out.parent)
        with SpooledTemporaryFile(_IN_MEMORY, dir=str(out.parent)) as packed:
            numbers, found = _pack(masks, count, (height, width), packed, out)
            with quiet(source, "its patient or study cannot be carried into a segmentation; export it again"):
                content = io.BytesIO()
                made = _segmentation(header, count, numbers, found, made_by, uid)
                if plane:
                    _place(made)
                made.save_as(content, enforce_file_format=True)
            with atomic_write(out) as file:
                file.write(content.getbuffer())
                # Its last element, by hand: pydicom would have it in memory as a whole.
                file.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, packed.tell()))
                packed.seek(0)
                shutil.copyfileobj(packed, file, 1 << 20)
    except OSError as error:
        raise disk_error(out, error) from error


def _pack(
    masks: Iterable[NDArray[np.bool_]], count: int, shape: tuple[int, int], packed: IO[bytes], out: Path
) -> tuple[list[int], bool]:
    """Write the masks with a polyp, eight pixels a byte, without gaps; their numbers (from 1), and if there is one.

    Where no frame has a polyp, the first one's empty mask is written.
    """
    numbers: list[int] = []
    rest = np.zeros(0, bool)  # pixels of the last byte where a frame ends within it
    seen = 0
    for seen, mask in enumerate(masks, start=1):
        if mask.shape != shape or mask.dtype != bool:
            raise ValueError(f"a mask is {shape[0]}×{shape[1]} bool, not {mask.shape} {mask.dtype}")
        if mask.any():
            numbers.append(seen)
            bits = np.concatenate([rest, mask.ravel()])
            whole = len(bits) // 8 * 8
            packed.write(np.packbits(bits[:whole], bitorder="little").tobytes())
            rest = bits[whole:]
            if packed.tell() + 2 > _LONGEST:
                line = f"{out}: the masks need more than the 4 GiB that DICOM allows; cut the video into parts"
                raise PolypsegError(line)
    if seen != count:
        raise ValueError(f"{seen} masks for {count} frames")
    found = bool(numbers)
    if not found:
        numbers, rest = [1], np.zeros(shape[0] * shape[1], bool)
    packed.write(np.packbits(rest, bitorder="little").tobytes())
    packed.write(bytes(packed.tell() % 2))
    return numbers, found


def _segmentation(
    source: Dataset, count: int, numbers: list[int], found: bool, made_by: MadeBy, uid: str | None
) -> Dataset:
    """The whole object without its pixels.

    highdicom's own Segmentation takes several frames only where they have positions in space, which a camera's
    frames do not; so this one is put together from its parts. It is placed by the frames it refers to.
    """
    from highdicom import AlgorithmIdentificationSequence, SOPClass
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom import config
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code
    from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage, generate_uid

    # The source's patient and study are carried over as they are, even where the standard would have them otherwise.
    with config.disable_value_validation():
        result = SOPClass(
            study_instance_uid=source.StudyInstanceUID,
            series_instance_uid=generate_uid(entropy_srcs=[source.SeriesInstanceUID, made_by.hash, __version__]),
            series_number=SERIES_NUMBER,
            sop_instance_uid=uid or generate_uid(),
            sop_class_uid=SegmentationStorage,
            instance_number=max(1, int(source.get("InstanceNumber") or 1)),
            modality="SEG",
            manufacturer="polypseg",
            manufacturer_model_name=made_by.name[:64],
            device_serial_number=made_by.hash.partition("+")[0],  # of an ensemble the first one's: 64 characters fit
            software_versions=__version__,
            series_description="Polyps by polypseg; research use only",
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        result.copy_patient_and_study_information(_of_a_known_class(source))
        if "SpecificCharacterSet" in source:
            result.SpecificCharacterSet = source.SpecificCharacterSet

    if source.get("FrameOfReferenceUID"):
        result.FrameOfReferenceUID = source.FrameOfReferenceUID
        result.PositionReferenceIndicator = source.get("PositionReferenceIndicator") or ""
    result.ContentLabel = "POLYPS"
    result.ContentDescription = f"Polyps in {len(numbers) if found else 0} of {count} frames; research use only"
    result.ContentCreatorName = ""
    result.ImageType = ["DERIVED", "PRIMARY"]
    result.PatientOrientation = ""
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in source:
            result[keyword] = source[keyword]
    if "LossyImageCompression" not in result:
        result.LossyImageCompression = "00"

    result.SegmentationType = "BINARY"
    result.SegmentsOverlap = "NO"
    algorithm = AlgorithmIdentificationSequence(
        name="polypseg",
        family=codes.DCM.ArtificialIntelligence,
        version=__version__,
        parameters={
            "model": made_by.name,
            "hash": made_by.hash,
            "threshold": f"{made_by.threshold:g}",
            "min_confidence": f"{made_by.min_confidence:g}",
            "runtime": made_by.runtime,
            "precision": made_by.precision,
        },
    )
    polyp = SegmentDescription(
        segment_number=1,
        segment_label="Polyp",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=Code("41329004", "SCT", "Polyp"),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        anatomic_regions=_regions(source),
        display_color=CIELabColor.from_rgb(*PREDICTION),
    )
    result.SegmentSequence = [polyp]

    result.Rows, result.Columns = source.Rows, source.Columns
    result.SamplesPerPixel = 1
    result.PhotometricInterpretation = "MONOCHROME2"
    result.PresentationLUTShape = "IDENTITY"
    result.BitsAllocated, result.BitsStored, result.HighBit = 1, 1, 0
    result.PixelRepresentation = 0
    result.NumberOfFrames = len(numbers)

    image = _item(ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID)
    result.SourceImageSequence = [image]
    result.ReferencedSeriesSequence = [
        _item(SeriesInstanceUID=source.SeriesInstanceUID, ReferencedInstanceSequence=[image])
    ]
    organization = generate_uid(entropy_srcs=[", ".join(label for _, _, label in _DIMENSIONS)])
    result.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    result.DimensionIndexSequence = [
        _item(
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=group,
            DimensionOrganizationUID=organization,
            DimensionDescriptionLabel=label,
        )
        for pointer, group, label in _DIMENSIONS
    ]
    result.SharedFunctionalGroupsSequence = [_item(SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=1)])]
    result.PerFrameFunctionalGroupsSequence = [_frame(source, number) for number in numbers]
    return result


def _place(made: Dataset) -> None:
    """Put all frames into one plane, which is made up; they alone say what they are of.

    The viewers that need this take the n-th source of the whole file for the n-th frame's, and there is but one.
    """
    from pydicom.uid import generate_uid

    source = made.ReferencedSeriesSequence[0].SeriesInstanceUID
    made.FrameOfReferenceUID = generate_uid(entropy_srcs=[source, "plane"])
    made.PositionReferenceIndicator = ""
    del made.SourceImageSequence
    (shared,) = made.SharedFunctionalGroupsSequence
    shared.PixelMeasuresSequence = [_item(PixelSpacing=[1, 1], SliceThickness=1)]
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    for frame in made.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence = [_item(ImagePositionPatient=[0, 0, 0])]


def _of_a_known_class(source: Dataset) -> Dataset:
    """The source, for highdicom, which knows where patient and study stand in the standard's own classes alone."""
    from pydicom import Dataset
    from pydicom.uid import SecondaryCaptureImageStorage

    copied = Dataset(dict(source.items()))
    put(copied, "SOPClassUID", SecondaryCaptureImageStorage)
    return copied


def _regions(source: Dataset) -> list[Code] | None:
    """Where in the body the source says that it was taken, as far as that is well coded; None where it does not say."""
    from pydicom.sr.coding import Code

    regions = []
    for item in source.get("AnatomicRegionSequence") or ():
        words = [str(item.get(name) or "") for name in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")]
        if all(0 < len(word) <= most for word, most in zip(words, (16, 16, 64), strict=True)):
            regions.append(Code(*words))
    return regions[:1] or None


def _frame(source: Dataset, number: int) -> Dataset:
    """What a mask says of itself: it shows frame ``number`` (from 1) of the source, pixel for pixel."""
    from pydicom.sr.codedict import codes

    image = _item(
        ReferencedSOPClassUID=source.SOPClassUID,
        ReferencedSOPInstanceUID=source.SOPInstanceUID,
        SpatialLocationsPreserved="YES",
        PurposeOfReferenceCodeSequence=[_coded(codes.cid7202.SourceImageForImageProcessingOperation)],
    )
    if "NumberOfFrames" in source:
        image.ReferencedFrameNumber = number
    derivation = _item(
        SourceImageSequence=[image], DerivationCodeSequence=[_coded(codes.cid7203.SegmentationImageDerivation)]
    )
    place = _item(DimensionIndexValues=[1, number], TemporalPositionIndex=number)
    return _item(FrameContentSequence=[place], DerivationImageSequence=[derivation])


def _coded(code: Code) -> Dataset:
    return _item(CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning)


def _item(**values: Any) -> Dataset:
    """A Dataset of these elements."""
    from pydicom import Dataset

    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
