//! Tidy tables: one observation a row, units in the column names, CSV that a spreadsheet opens as it is.

use std::path::Path;

use crate::{RecordError, Result, write_atomically};

/// One cell of a [`Table`], as it will stand in the file.
///
/// Numbers are written in the shortest form that reads back to the same value. Not-a-number and the infinities
/// are `NaN`, `inf`, `-inf`; an unknown value (`None`) is an empty cell, never 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell(String);

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        // Plain digits in everyday ranges, exponents where they would become a row of zeros.
        let plain = value == 0.0 || !value.is_finite() || (1e-4..1e15).contains(&value.abs());
        Self(if plain { value.to_string() } else { format!("{value:e}") })
    }
}

impl From<f32> for Cell {
    fn from(value: f32) -> Self {
        // Widened to f64 first, 0.1 would become 0.10000000149011612.
        let plain = value == 0.0 || !value.is_finite() || (1e-4..1e9).contains(&value.abs());
        Self(if plain { value.to_string() } else { format!("{value:e}") })
    }
}

impl From<&str> for Cell {
    fn from(value: &str) -> Self {
        Self(value.to_owned())
    }
}

impl From<String> for Cell {
    fn from(value: String) -> Self {
        Self(value)
    }
}

macro_rules! cell_from_display {
    ($($kind:ty),*) => {$(
        impl From<$kind> for Cell {
            fn from(value: $kind) -> Self {
                Self(value.to_string())
            }
        }
    )*};
}
cell_from_display!(i64, i32, u64, u32, usize, bool);

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or_else(|| Self(String::new()), Into::into)
    }
}

/// The cells of one row, each made with `Cell::from`: `table.row(cells![seed, alpha, loss])?`.
#[macro_export]
macro_rules! cells {
    ($($value:expr),* $(,)?) => { [$($crate::Cell::from($value)),*] };
}

/// Columns with names, and rows of [`Cell`]s.
///
/// ```
/// use flatland_record::{Table, cells};
/// let mut table = Table::new(&["seed", "learning_rate", "test_loss_nats"]);
/// table.row(cells![0_u64, 0.1, Some(0.25)])?;
/// table.row(cells![1_u64, 0.1, None::<f64>])?;
/// assert_eq!(table.to_csv_bytes(), b"seed,learning_rate,test_loss_nats\n0,0.1,0.25\n1,0.1,\n");
/// # Ok::<(), flatland_record::RecordError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(|&name| name.to_owned()).collect(), rows: Vec::new() }
    }

    /// Appends a row.
    ///
    /// # Errors
    /// [`RecordError::RowLength`] unless there is one cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) -> Result<()> {
        let cells: Vec<Cell> = cells.into_iter().collect();
        if cells.len() != self.columns.len() {
            return Err(RecordError::RowLength {
                expected: self.columns.len(),
                found: cells.len(),
                columns: self.columns.join(", "),
            });
        }
        self.rows.push(cells);
        Ok(())
    }

    /// The columns' names.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as CSV: header first, UTF-8, lines ended by LF, quotes only where needed.
    pub fn to_csv_bytes(&self) -> Vec<u8> {
        let mut writer = csv::WriterBuilder::new().from_writer(Vec::new());
        // Neither call can fail: memory takes every write, and `row` has checked the lengths.
        let _ = writer.write_record(&self.columns);
        for row in &self.rows {
            let _ = writer.write_record(row.iter().map(|cell| &cell.0));
        }
        writer.into_inner().unwrap_or_default()
    }

    /// Writes the table as CSV, in one step.
    ///
    /// # Errors
    /// As [`write_atomically`].
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomically(path, &self.to_csv_bytes())
    }
}

/// Four significant digits.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if value == 0. || !value.is_finite() {
        format!("{value}")
    } else if (1e-3..1e4).contains(&size) {
        let decimals = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
        format!("{value:.decimals$}")
    } else {
        format!("{value:.3e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_to_the_same_value_and_stay_short() {
        let text = |cell: Cell| cell.0;
        for value in [0.1, 1.0 / 3.0, 1e-10, 5e-324, f64::MAX, 123_456.75, -2.5e20, 0.0, 1e15, 9.99e-5] {
            let written = text(value.into());
            assert_eq!(written.parse::<f64>().unwrap().to_bits(), value.to_bits());
            assert!(written.len() < 25, "{written}");
        }
        assert_eq!(text(0.1_f32.into()), "0.1");
        assert_eq!(text(1e-10.into()), "1e-10");
        assert_eq!(text(1e20.into()), "1e20");
        assert_eq!(text(f64::NAN.into()), "NaN");
        assert_eq!(text(f64::INFINITY.into()), "inf");
        assert_eq!(text(f32::NEG_INFINITY.into()), "-inf");
        assert_eq!(text(None::<f64>.into()), "");
        assert_eq!(text(u64::MAX.into()), "18446744073709551615");
        assert_eq!(text(true.into()), "true");
    }

    #[test]
    fn short_numbers_have_four_digits() {
        for (value, text) in
            [(0., "0"), (1.23456, "1.235"), (-0.012_346, "-0.01235"), (99.999, "100.00"), (1e-9, "1.000e-9")]
        {
            assert_eq!(short(value), text);
        }
        assert_eq!(short(f64::NAN), "NaN");
    }

    #[test]
    fn text_is_quoted_only_where_needed() {
        let mut table = Table::new(&["what", "n"]);
        table.row(cells!["a, \"b\"", 1_usize]).unwrap();
        table.row(cells![String::from("θ₁"), -1_i64]).unwrap();
        assert_eq!(String::from_utf8(table.to_csv_bytes()).unwrap(), "what,n\n\"a, \"\"b\"\"\",1\nθ₁,-1\n");
    }

    #[test]
    fn a_row_of_another_length_is_an_error() {
        let mut table = Table::new(&["a", "b"]);
        let error = table.row(cells![1.0]).unwrap_err();
        assert_eq!(error.to_string(), "a row of 1 cells does not fit the 2 columns of the table (a, b)");
        assert!(table.is_empty());
    }

    #[test]
    fn a_table_is_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        Table::new(&["a"]).write(&path).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"a\n");
    }
}
