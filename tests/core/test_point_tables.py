from dataclasses import replace

import numpy as np
import pytest

from biasreg.core.errors import ImageError
from biasreg.core.points_io import read_point_table, read_points, write_point_table

TEXT = "label,X,y,z,t,comment\n1,1.5,-2,3,0,left\n1,4,5,6,0,\n"


def test_columns_order_and_doubled_labels_survive(tmp_path):
    (tmp_path / "a.csv").write_text(TEXT)
    table = read_point_table(tmp_path / "a.csv")
    assert table.coordinates.tolist() == [[-1.5, 2, 3], [-4, -5, 6]]  # RAS
    write_point_table(tmp_path / "b.csv", replace(table, coordinates=table.coordinates + np.array([1, 0, 0])))
    assert (tmp_path / "b.csv").read_text() == "label,X,y,z,t,comment\n1,0.5,-2.0,3.0,0,left\n1,3.0,5.0,6.0,0,\n"


def test_points_in_ras_are_taken_and_written_as_they_are(tmp_path):
    (tmp_path / "a.csv").write_text(TEXT)
    table = read_point_table(tmp_path / "a.csv", ras=True)
    assert table.coordinates[0].tolist() == [1.5, -2, 3]
    write_point_table(tmp_path / "b.csv", table, ras=True)
    again = read_point_table(tmp_path / "b.csv", ras=True)
    np.testing.assert_array_equal(again.coordinates, table.coordinates)


@pytest.mark.parametrize("read", [read_points, read_point_table])
def test_faults_name_the_line(read, tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ImageError, match="there is no column z"):
        read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("x,y,z\n1,2,3\n1,2,much\n")
    with pytest.raises(ImageError, match="line 3: z must be a finite number"):
        read(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("x,y,z\n")
    with pytest.raises(ImageError, match="holds no point"):
        read(tmp_path / "c.csv")
