import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biasreg.core.errors import ImageError
from biasreg.core.points_io import Points, read_points, write_points

NAMES = st.text(st.characters(categories=("L", "N", "P")), min_size=1).filter(lambda name: name.lower() != "nan")
COORDINATES = st.tuples(*[st.floats(-1e6, 1e6)] * 3)


@settings(max_examples=40, deadline=None)
@given(points=st.dictionaries(NAMES, COORDINATES, min_size=1, max_size=5))
def test_points_survive_the_round_trip_exactly(points, tmp_path_factory):
    path = tmp_path_factory.mktemp("points") / "a.csv"
    write_points(path, Points(tuple(points), np.array(list(points.values()))))
    read = read_points(path)
    assert read.names == tuple(points)
    np.testing.assert_array_equal(read.coordinates, list(points.values()))


def test_the_file_is_in_lps_and_starts_with_the_columns_that_ants_takes(tmp_path):
    write_points(tmp_path / "a.csv", Points(("tip",), np.array([[1.0, 2.0, 3.0]])))
    assert (tmp_path / "a.csv").read_text() == "x,y,z,t,name\n-1.0,-2.0,3.0,0,tip\n"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x,y,z\n1,2,3\n4,5,6\n", ("1", "2")),
        ("name,x,y,z\na,1,2,3\nb,4,5,6\n", ("a", "b")),
        ("x,y,z,t,label,comment\n1,2,3,0,7,text\n4,5,6,0,8,nan\n", ("7", "8")),
        ("X, Y, Z, Name\r\n1, 2, 3, a\r\n\r\n4, 5, 6, b\r\n", ("a", "b")),
        ("\ufeffx,y,z,name\n1,2,3,nan\n4,5,6\n", ("1", "2")),
    ],
)
def test_columns_are_found_by_their_names(text, names, tmp_path):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    points = read_points(tmp_path / "a.csv")
    assert points.names == names
    np.testing.assert_array_equal(points.coordinates, [[-1, -2, 3], [-4, -5, 6]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y,name\n1,2,a\n", r"line 1: there is no column z \(found: x, y, name\)"),
        ("1,2,3\n", "line 1: there is no column x, y, z"),
        ("x,y,z\n1,2,3\n\n1,two,3\n", "line 4: y must be a finite number in mm, got 'two'"),
        ("x,y,z\n1,2\n", "line 2: z must be a finite number in mm, got ''"),
        ("x,y,z\n1,2,inf\n", "line 2: z must be a finite number in mm, got 'inf'"),
        ("x,y,z,name\n1,2,3,a\n4,5,6,a\n", "line 3: the name a stands in line 2 already"),
        ("x,y,z\n", "holds no point"),
        ("", "is empty"),
    ],
)
def test_faults_are_refused_with_their_line(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ImageError, match=message) as error:
        read_points(tmp_path / "a.csv")
    assert "a.csv" in str(error.value)


def test_missing_and_undecodable_files_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"a\.csv: there is no such file"):
        read_points(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b"x,y,z\n\xff\xfe\n")
    with pytest.raises(ImageError, match=r"a\.csv: cannot be read"):
        read_points(tmp_path / "a.csv")
