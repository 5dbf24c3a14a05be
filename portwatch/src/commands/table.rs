//! Lines with aligned columns.

use std::{borrow::Borrow, fmt::Write as _};

/// The widths of columns, in characters.
pub(super) struct Widths<const N: usize>([usize; N]);

impl<const N: usize> Widths<N> {
    /// So that each of these rows fits.
    pub(super) fn of(rows: impl IntoIterator<Item: Borrow<[String; N]>>) -> Self {
        let mut widths = [0; N];
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row.borrow()) {
                *width = (*width).max(cell.chars().count());
            }
        }
        Self(widths)
    }

    /// A row as a line, without its end; the columns with these `numbers` are aligned to the right.
    pub(super) fn line(&self, row: &[String; N], numbers: &[usize]) -> String {
        let mut line = String::new();
        for ((column, cell), width) in row.iter().enumerate().zip(self.0) {
            // Writing to a String does not fail.
            let _ = match numbers.contains(&column) {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:width$}  "),
            };
        }
        line.truncate(line.trim_end().len());
        line
    }
}
