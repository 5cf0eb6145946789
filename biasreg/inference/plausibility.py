"""Whether an image is one that the model was planned for."""

from collections.abc import Sequence

from biasreg.core.errors import ImageError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image
from biasreg.planning.plans import Crop
from biasreg.preprocessing.preprocess import OUTSIDE_NOTICE, CanonicalImage

# People and scans differ by less than this factor; a header in cm or µm, or another part of the body, by more.
PROPORTION = 4.0


def check_content(name: str, channels: Sequence[Image], canonical: CanonicalImage) -> None:
    """Refuse an image that shows nothing: a constant one, or one of which normalisation leaves nothing.

    Args:
        name: What it is of the pair.
        channels: The image, one `Image` per channel.
        canonical: The same on the canonical grid.

    Raises:
        ImageError: No channel shows anything.
    """
    if all(canonical.blank):
        lowest = min(float(channel.array.min()) for channel in channels)
        highest = max(float(channel.array.max()) for channel in channels)
        raise ImageError(
            f"there is nothing to register in the {name} image: all its voxels are alike, or nearly all (values from "
            f"{lowest:g} to {highest:g}) · give an image that shows the anatomy"
        )


def content_notices(name: str, canonical: CanonicalImage, grid: Geometry, crop: Crop) -> tuple[str, ...]:
    """Say what a user should know about an image before trusting its registration.

    Args:
        name: What it is of the pair.
        canonical: The image on the canonical grid.
        grid: The canonical grid: the field of view that was planned.
        crop: What that covers; of a part of the anatomy neither size nor place can be told without labels.

    Returns:
        One sentence each about channels that show nothing, the size of the anatomy, and its part outside the grid.
    """
    notices = [
        f"channel {channel} of the {name} image shows nothing: all its voxels are alike, or nearly all"
        for channel, blank in enumerate(canonical.blank)
        if blank
    ]
    if crop == "labels":
        return (*notices, *_field_of_view_notices(name, canonical, grid))
    sides = list(zip(canonical.extent_mm, grid.extent_mm, strict=True))
    if any(not 1 / PROPORTION <= found / planned <= PROPORTION for found, planned in sides):
        found, planned = ("×".join(f"{side:.3g}" for side in each) for each in zip(*sides, strict=True))
        notices.append(
            f"the {name} image's anatomy measures {found} mm, but the model was planned for {planned} mm; is its voxel "
            "size in mm, and does it show the same part of the body?"
        )
    if canonical.foreground_outside > OUTSIDE_NOTICE:
        notices.append(
            f"{100 * canonical.foreground_outside:.1f} % of the {name} image's anatomy lies outside the grid that the "
            "network sees; there the field is continued from the grid's border"
        )
    return tuple(notices)


def _field_of_view_notices(name: str, canonical: CanonicalImage, grid: Geometry) -> tuple[str, ...]:
    """Say whether so little of the planned field of view shows anything that the voxel size may be wrong."""
    seen = float(canonical.mask.mean())
    if seen >= 1 / PROPORTION:
        return ()
    planned = "×".join(f"{side:.3g}" for side in grid.extent_mm)
    return (
        f"the {name} image covers {100 * seen:.2g} % of the {planned} mm that the model was planned for; is its voxel "
        "size in mm, and does it show the same part of the body?",
    )
