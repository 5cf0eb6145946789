"""Transforms of a user's own for listed pairs: which way leads where, and what is refused."""

import numpy as np
import pytest
import SimpleITK

from biasreg.core.dataset import read_dataset
from biasreg.core.errors import DatasetError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import write_image
from biasreg.core.pairs import read_pairs
from biasreg.core.serialization import write_json
from biasreg.core.transform_io import read_linear_transform
from biasreg.core.verification import verify_dataset
from biasreg.planning.fingerprint import source_hash

SHAPE = (8, 9, 10)


def euler(angle, shift):
    transform = SimpleITK.Euler3DTransform()
    transform.SetRotation(angle, 0.0, -angle / 2)
    transform.SetTranslation(shift)
    return transform


@pytest.fixture
def make_dataset(tmp_path):
    """Return a maker of datasets with cases a to f, transforms by name, and pairs (moving, fixed, transform)."""

    def make(transforms, pairs, test_pairs=(), pairing="listed"):
        folder = tmp_path / "Dataset700_Given"
        for name in "abcdef":
            image = np.random.default_rng(ord(name)).uniform(size=SHAPE).astype(np.float32)
            write_image(folder / "imagesTr" / f"{name}.nii.gz", image, Geometry.centered(SHAPE, (5.0, 5.0, 5.0)))
        (folder / "transformsTr").mkdir(exist_ok=True)
        for name, transform in transforms.items():
            SimpleITK.WriteTransform(transform, str(folder / "transformsTr" / f"{name}.tfm"))

        def entries(listed):
            keys = ("moving", "fixed", "initial")
            found = [dict(zip(keys, pair, strict=False)) for pair in listed]
            return [
                entry | ({"initial": f"transformsTr/{entry['initial']}.tfm"} if "initial" in entry else {})
                for entry in found
            ]

        content = {"name": "Given", "channel_names": {"0": "MRI"}, "labels": {"background": 0}, "pairing": pairing}
        listed = {"pairs": entries(pairs), "test_pairs": entries(test_pairs)}
        write_json(folder / "dataset.json", content | {"file_ending": ".nii.gz"} | listed)
        return folder

    return make


TRANSFORMS = {"t": euler(0.2, (5.0, -3.0, 2.0)), "u": euler(-0.1, (0.0, 8.0, 1.0)), "v": euler(0.3, (1.0, 1.0, -9.0))}


def matrices(folder):
    return {name: read_linear_transform(folder / "transformsTr" / f"{name}.tfm") for name in TRANSFORMS}


def given(folder):
    return {case.identifier: case.given for case in read_dataset(folder).cases("Tr") if case.given}


def test_transforms_are_followed_from_the_fixed_case_of_the_first_pair_in_both_directions(make_dataset):
    # b on a by t; b on c by u, so that c is reached against u; d on c by v; e and f are a part of their own.
    folder = make_dataset(TRANSFORMS, [("b", "a", "t"), ("b", "c", "u"), ("d", "c", "v"), ("f", "e", "v")])
    verify_dataset(read_dataset(folder))
    t, u, v = matrices(folder).values()
    frames = given(folder)
    assert {case: frame.anchor for case, frame in frames.items()} == {"b": "a", "c": "a", "d": "a", "f": "e"}
    np.testing.assert_allclose(frames["b"].matrix, t)
    np.testing.assert_allclose(frames["c"].matrix, np.linalg.inv(u) @ t)
    np.testing.assert_allclose(frames["d"].matrix, v @ np.linalg.inv(u) @ t)
    np.testing.assert_allclose(frames["f"].matrix, v)


def test_without_transforms_no_frame_is_given(make_dataset):
    assert given(make_dataset({}, [("b", "a"), ("d", "c")])) == {}


@pytest.mark.parametrize(("off_mm", "accepted"), [(0.0, True), (0.9, True), (1.5, False)])
def test_circles_must_agree_within_a_millimetre_at_the_corners(off_mm, accepted, make_dataset):
    both = SimpleITK.CompositeTransform(3)  # c on a: first t, from a to b, then u, from b to c
    for part in (SimpleITK.TranslationTransform(3, (0.0, off_mm, 0.0)), TRANSFORMS["u"], TRANSFORMS["t"]):
        both.AddTransform(part)
    folder = make_dataset(
        TRANSFORMS | {"both": both}, [("b", "a", "t"), ("c", "b", "u"), ("c", "a", "both"), ("f", "e", "v")]
    )
    dataset = read_dataset(folder)
    if accepted:
        verify_dataset(dataset)
    else:
        with pytest.raises(DatasetError) as error:
            verify_dataset(dataset)
        assert "both" not in str(error.value) or "1.5 mm apart, 1 mm are allowed" in str(error.value)
        assert str(error.value).count("apart") == 1


def test_a_pair_and_its_reverse_must_be_inverses(make_dataset):
    folder = make_dataset(TRANSFORMS, [("b", "a", "t"), ("a", "b", "t"), ("f", "e", "v")])
    with pytest.raises(DatasetError, match=r"pairs\[1\]\.initial: transformsTr/t\.tfm takes .* of b to .*of a"):
        verify_dataset(read_dataset(folder))
    folder = make_dataset(
        TRANSFORMS | {"w": TRANSFORMS["t"].GetInverse()}, [("b", "a", "t"), ("a", "b", "w"), ("f", "e", "v")]
    )
    verify_dataset(read_dataset(folder))


def test_all_faults_of_transforms_are_found_together(make_dataset):
    mirror = SimpleITK.AffineTransform(3)
    mirror.SetMatrix((-1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    pairs = [("b", "a", "t"), ("d", "c", "gone"), ("f", "e", "mirror")]
    folder = make_dataset(TRANSFORMS | {"mirror": mirror}, pairs, test_pairs=[("a", "b", "spline"), ("b", "a")])
    SimpleITK.WriteTransform(SimpleITK.BSplineTransform(3), str(folder / "transformsTr" / "spline.tfm"))
    with pytest.raises(DatasetError) as error:
        verify_dataset(read_dataset(folder))
    text = str(error.value)
    assert "3 faults" in text
    assert "pairs[1].initial: " in text
    assert "gone.tfm: there is no such file" in text
    assert "mirror.tfm: mirrors the image" in text
    assert "test_pairs[0].initial: " in text
    assert "spline.tfm: holds BSplineTransform" in text


@pytest.mark.parametrize(
    ("pairs", "pairing", "message"),
    [
        (
            [("b", "a", "t"), ("d", "c"), ("f", "e")],
            "listed",
            r"pairs\[0\]\.initial: .*no transform of pairs\[1\], pairs",
        ),
        ([("b", "a", "t")], "inter-subject", r'pairs\[0\]\.initial: .*"listed" alone, but it is "inter-subject"'),
    ],
)
def test_transforms_of_some_pairs_or_where_they_do_not_count_are_refused(pairs, pairing, message, make_dataset):
    with pytest.raises(DatasetError, match=message):
        read_dataset(make_dataset(TRANSFORMS, pairs, pairing=pairing))


def test_a_changed_transform_changes_the_hash_of_each_case_whose_frame_follows_from_it(make_dataset):
    pairs = [("b", "a", "t"), ("c", "b", "u"), ("f", "e", "v")]
    before = {case.identifier: source_hash(case) for case in read_dataset(make_dataset(TRANSFORMS, pairs)).cases()}

    def changed(folder):
        now = {case.identifier: source_hash(case) for case in read_dataset(folder).cases()}
        return [name for name in now if now[name] != before[name]]

    assert changed(make_dataset(TRANSFORMS, pairs)) == []
    assert changed(make_dataset(TRANSFORMS | {"t": euler(0.25, (5.0, -3.0, 2.0))}, pairs)) == ["b", "c"]
    assert changed(make_dataset(TRANSFORMS, [("b", "a", "t"), ("b", "c", "u"), ("f", "e", "v")])) == ["c"]
    folder = make_dataset(TRANSFORMS, pairs)
    write_image(folder / "imagesTr" / "a.nii.gz", np.ones(SHAPE), Geometry.centered(SHAPE, (5.0, 5.0, 5.0)))
    assert changed(folder) == ["a", "b", "c"]


def test_test_pairs_bring_their_transforms_to_prediction(make_dataset):
    folder = make_dataset(TRANSFORMS, [("b", "a"), ("d", "c")], test_pairs=[("e", "f", "t"), ("f", "e")])
    assert [pair.initial for pair in read_pairs(folder).pairs] == [folder / "transformsTr" / "t.tfm", None]
