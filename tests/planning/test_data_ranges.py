from dataclasses import replace

import numpy as np
import pytest

from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image
from biasreg.core.serialization import from_json, to_json
from biasreg.planning.data_ranges import DataRanges, data_ranges, suspicions
from biasreg.planning.fingerprint import channel_statistics
from biasreg.planning.fingerprint_records import CaseFingerprint, Fingerprint
from biasreg.planning.plans import ChannelNormalization, PreprocessingPlans

WINDOW = ChannelNormalization("window", -100.0, 300.0)
PERCENTILE = ChannelNormalization("percentile", 0.5, 99.5)


def plans_of(*normalization):
    return PreprocessingPlans(
        spacing=(1.0, 1.0, 1.0),
        patch_size=(8, 8, 8),
        modality="MRI",
        normalization=normalization,
        prealignment="center",
        crop="anatomy",
        reference_case=None,
        label_values=(),
        label_names=(),
    )


def picture(spacing=(1.0, 1.0, 2.0), mean=100.0, std=30.0, seed=0):
    array = np.random.default_rng(seed).normal(mean, std, size=(12, 12, 12)).astype(np.float32)
    return Image(array, Geometry.centered(array.shape, spacing))


def fingerprint_of(images):
    cases = [
        CaseFingerprint(
            identifier=str(number),
            subject=str(number),
            modality="MRI",
            geometry=channels[0].geometry,
            world_spacing=channels[0].geometry.spacing,
            field_of_view_mm=channels[0].geometry.extent_mm,
            foreground_center=(0.0, 0.0, 0.0),
            foreground_extent_mm=channels[0].geometry.extent_mm,
            channels=tuple(channel_statistics(channel.array.ravel()) for channel in channels),
            label_volumes_mm3=None,
            label_extent_mm=None,
            landmarks=None,
            source_hash="",
        )
        for number, channels in enumerate(images)
    ]
    return Fingerprint(3, "Dataset900_Test", "0", tuple(cases), ())


@pytest.fixture
def training():
    return [[picture(mean=100 + 5 * number, seed=number)] for number in range(5)]


def test_an_image_of_training_is_like_training(training):
    for plan in (WINDOW, PERCENTILE):
        ranges = data_ranges(fingerprint_of(training), plans_of(plan))
        assert [suspicions("fixed", image, ranges, plans_of(plan)) for image in training] == [[]] * 5


def test_ranges_are_the_smallest_and_largest_and_survive_json(training):
    training.append([picture(spacing=(0.5, 1.0, 3.0))])
    ranges = data_ranges(fingerprint_of(training), plans_of(WINDOW))
    assert ranges.spacing_mm == ((0.5, 1.0), (1.0, 1.0), (2.0, 3.0))
    low, high = ranges.intensities[0][1]  # the medians
    assert low == pytest.approx((100 + 100) / 400, abs=0.01)
    assert high == pytest.approx((120 + 100) / 400, abs=0.01)
    assert from_json(DataRanges, to_json(ranges)) == ranges


@pytest.mark.parametrize(("spacing", "unlike"), [((1.4, 1.0, 2.0), 0), ((1.0, 1.0, 5.0), 1), ((0.3, 1.0, 2.0), 1)])
def test_a_voxel_size_out_of_range_is_named_with_both(training, spacing, unlike):
    ranges = data_ranges(fingerprint_of(training), plans_of(WINDOW))
    found = suspicions("moving", [picture(spacing)], ranges, plans_of(WINDOW))
    assert len(found) == unlike
    assert all(
        text.startswith("the moving image's voxels measure ") and "1 to 1, 1 to 1, 2 to 2 mm" in text for text in found
    )


def test_intensities_in_other_units_are_noticed_in_a_fixed_window(training):
    ranges = data_ranges(fingerprint_of(training), plans_of(WINDOW))
    (text,) = suspicions("fixed", [picture(mean=1100)], ranges, plans_of(WINDOW))
    assert "the fixed image's intensities are unusual: percentile 1 of its anatomy lies at 2." in text


def test_a_gain_is_nothing_unusual_where_each_image_has_its_own_window(training):
    ranges = data_ranges(fingerprint_of(training), plans_of(PERCENTILE))
    assert suspicions("fixed", [picture(mean=1e5, std=3e4)], ranges, plans_of(PERCENTILE)) == []


def test_another_contrast_is_noticed_where_each_image_has_its_own_window(training):
    ranges = data_ranges(fingerprint_of(training), plans_of(PERCENTILE))
    image = picture()
    skewed = replace(image, array=np.exp(image.array / 15))
    assert len(suspicions("fixed", [skewed], ranges, plans_of(PERCENTILE))) == 1


def test_the_channel_is_named_where_there_are_several(training):
    plans = plans_of(WINDOW, WINDOW)
    ranges = data_ranges(fingerprint_of([[image, image] for (image,) in training]), plans)
    (text,) = suspicions("fixed", [picture(), picture(mean=5000)], ranges, plans)
    assert "unusual in channel 1" in text


def test_a_constant_image_raises_nothing(training):
    ranges = data_ranges(fingerprint_of(training), plans_of(PERCENTILE))
    flat = replace(picture(), array=np.ones((12, 12, 12), dtype=np.float32))
    assert len(suspicions("fixed", [flat], ranges, plans_of(PERCENTILE))) == 1
