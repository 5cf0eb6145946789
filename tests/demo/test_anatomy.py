import numpy as np

from biasreg.demo.anatomy import LABELS, atlas_at, landmarks


def grid(step):
    axes = [np.arange(-extent, extent + step, step) for extent in (62.0, 48.0, 70.0)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def test_every_label_has_a_volume_of_at_least_four_millilitres():
    _, labels = atlas_at(grid(3.0))
    counts = np.bincount(labels, minlength=len(LABELS))
    assert len(counts) == len(LABELS)
    assert counts.min() * 0.027 > 4


def test_left_and_right_differ_in_labels_and_signal():
    points = grid(3.0)
    signal, labels = atlas_at(points)
    mirrored_signal, mirrored_labels = atlas_at(points * [-1, 1, 1])
    inside = (labels > 0) | (mirrored_labels > 0)
    assert (labels != mirrored_labels)[inside].mean() > 0.5
    assert np.abs(signal - mirrored_signal)[inside].mean() > 0.05


def test_the_liver_is_on_the_subjects_right_and_the_spleen_on_the_left():
    points = grid(3.0)
    _, labels = atlas_at(points)
    assert points[labels == LABELS["liver"], 0].mean() > 10
    assert points[labels == LABELS["spleen"], 0].mean() < -20


def test_each_landmark_lies_in_the_organ_of_its_name():
    names, points = landmarks()
    _, labels = atlas_at(points)
    organs = {name: value for name, value in LABELS.items() if value}
    assert len(set(names)) == len(names) == 3 * len(organs)
    assert [organs[name.rsplit("_center")[0].rsplit("_end_")[0]] for name in names] == labels.tolist()


def test_a_point_has_the_same_value_alone_as_among_others():
    points = np.random.default_rng(0).uniform(-60, 60, (200, 3))
    signal, labels = atlas_at(points)
    alone = [atlas_at(point[None]) for point in points]
    np.testing.assert_allclose(np.concatenate([values for values, _ in alone]), signal, atol=1e-12)
    np.testing.assert_array_equal(np.concatenate([values for _, values in alone]), labels)


def test_outside_the_body_there_is_no_signal_and_no_label():
    signal, labels = atlas_at(np.array([[90.0, 0, 0], [0, -70, 0], [0, 0, 90]]))
    assert not signal.any()
    assert not labels.any()


def test_main_organs_differ_in_signal():
    names, points = landmarks()
    signal, _ = atlas_at(points)
    main = dict(zip(names, signal, strict=True))
    levels = sorted(main[f"{organ}_end_1"] for organ in ("liver", "spleen", "stomach", "bladder"))
    assert np.diff(levels).min() > 0.03
