//! Arrays and grids as the files of other programs: NumPy's `.npz`, and VTK's for ParaView.

use std::fmt::Write as _;
use std::io::Cursor;

use ndarray::{ArrayViewD, Axis};
use ndarray_npy::NpzWriter;

use crate::{RecordError, Result};

/// Named arrays of f64 as `.npz`, for `numpy.load`. The same arrays give the same bytes.
///
/// # Errors
/// [`RecordError::Array`], if a name is used twice.
pub fn npz(arrays: &[(&str, ArrayViewD<f64>)]) -> Result<Vec<u8>> {
    let mut writer = NpzWriter::new(Cursor::new(Vec::new()));
    let mut last = "";
    for (name, array) in arrays {
        writer
            .add_array(*name, array)
            .map_err(|error| RecordError::Array { name: (*name).to_owned(), reason: error.to_string() })?;
        last = name;
    }
    let finished = writer.finish();
    let bytes =
        finished.map_err(|error| RecordError::Array { name: last.to_owned(), reason: error.to_string() })?;
    Ok(bytes.into_inner())
}

/// A surface over a rectangle as VTK's legacy format, ASCII, a structured grid: it opens in ParaView, PyVista and meshio as it is.
///
/// Points lie at `(x[i], y[j], height[j][i])`; each of `scalars` is a value a point. All of them are `[rows, columns]`. Heights must be
/// finite; scalars that are not finite are written as `nan`, which VTK reads.
///
/// # Errors
/// [`RecordError::Field`] when an array has not one value for each place.
pub fn vtk(
    title: &str,
    (x, y): (&[f64], &[f64]),
    height: &ArrayViewD<f64>,
    scalars: &[(&str, ArrayViewD<f64>)],
) -> Result<Vec<u8>> {
    let (columns, rows) = (x.len(), y.len());
    let shapes = scalars.iter().map(|(_, array)| array.shape()).chain([height.shape()]);
    if let Some(other) = shapes.into_iter().find(|shape| *shape != [rows, columns]) {
        return Err(RecordError::Field { columns, rows, values: other.iter().product() });
    }
    // The title is one line of at most 256 bytes.
    let mut line: String =
        title.chars().map(|c| if c.is_ascii() && !c.is_control() { c } else { ' ' }).collect();
    line.truncate(255);
    let points = columns * rows;
    let mut text = format!(
        "# vtk DataFile Version 3.0\n{line}\nASCII\nDATASET STRUCTURED_GRID\nDIMENSIONS {columns} {rows} 1\nPOINTS {points} double\n"
    );
    for (y, row) in y.iter().zip(height.axis_iter(Axis(0))) {
        for (x, z) in x.iter().zip(&row) {
            let _ = writeln!(text, "{x:?} {y:?} {z:?}");
        }
    }
    let _ = writeln!(text, "POINT_DATA {points}");
    for (name, array) in scalars {
        let _ = writeln!(text, "SCALARS {name} double 1\nLOOKUP_TABLE default");
        for value in array {
            let _ = if value.is_finite() { writeln!(text, "{value:?}") } else { writeln!(text, "nan") };
        }
    }
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, Array2, array};
    use ndarray_npy::NpzReader;

    #[test]
    fn arrays_come_back_bit_for_bit() {
        let (x, loss) = (array![-0.0, 0.1, 5e-324], array![[1. / 3., f64::INFINITY], [f64::NAN, 1e300]]);
        let arrays = [("x", x.view().into_dyn()), ("train_loss", loss.view().into_dyn())];
        let bytes = npz(&arrays).unwrap();
        assert_eq!(bytes, npz(&arrays).unwrap(), "no clock in it");
        let mut reader = NpzReader::new(Cursor::new(bytes)).unwrap();
        let mut names = reader.names().unwrap();
        names.sort();
        assert_eq!(names, ["train_loss", "x"]);
        let bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect::<Vec<_>>();
        let read: Array1<f64> = reader.by_name("x").unwrap();
        assert_eq!(bits(read.into_raw_vec_and_offset().0), bits(x.to_vec()));
        let read: Array2<f64> = reader.by_name("train_loss").unwrap();
        assert_eq!(read.dim(), (2, 2));
        assert_eq!(bits(read.iter().copied().collect()), bits(loss.iter().copied().collect()));
        let twice = [("x", x.view().into_dyn()), ("x", x.view().into_dyn())];
        assert!(matches!(npz(&twice), Err(RecordError::Array { .. })));
    }

    #[test]
    fn a_grid_is_written_row_by_row() {
        let height = array![[0., 1., 2.], [3., 4., 5.]];
        let loss = array![[0.5, f64::INFINITY, 1e-9], [1e22, f64::NAN, 1.]];
        let scalars = [("train_loss", loss.view().into_dyn())];
        let write = |x: &[f64]| vtk("plane θ\n", (x, &[0., 10.]), &height.view().into_dyn(), &scalars);
        let text = String::from_utf8(write(&[-1., 0., 1.]).unwrap()).unwrap();
        assert_eq!(
            text,
            "# vtk DataFile Version 3.0\nplane   \nASCII\nDATASET STRUCTURED_GRID\nDIMENSIONS 3 2 1\nPOINTS 6 double\n\
             -1.0 0.0 0.0\n0.0 0.0 1.0\n1.0 0.0 2.0\n-1.0 10.0 3.0\n0.0 10.0 4.0\n1.0 10.0 5.0\nPOINT_DATA 6\n\
             SCALARS train_loss double 1\nLOOKUP_TABLE default\n0.5\nnan\n1e-9\n1e22\nnan\n1.0\n"
        );
        assert!(matches!(write(&[0.]), Err(RecordError::Field { columns: 1, rows: 2, values: 6 })));
    }
}
