//! Rows and figures: text in the table, numbers in the JSON.

use std::{
    fmt::{self, Write as _},
    iter,
};

use serde_json::{Value, json};

/// One row of a table.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) figures: Vec<(&'static str, Figure)>,
}

/// One figure of a row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Figure {
    Count(i64),
    /// With that many digits after the decimal point.
    Number(f64, usize),
    /// The median and the middle half, with that many digits.
    Spread {
        median: f64,
        low: f64,
        high: f64,
        digits: usize,
    },
    /// A count and the total that it is part of.
    Share(i64, i64),
    /// Not measured.
    None,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            figures: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, name: &'static str, figure: Figure) -> Self {
        self.figures.push((name, figure));
        self
    }

    /// A row with these figure names; missing figures are [`Figure::None`].
    pub(crate) fn of(
        what: impl Into<String>,
        names: &'static [&'static str],
        figures: impl IntoIterator<Item = Figure>,
    ) -> Self {
        let figures = figures.into_iter().chain(iter::repeat(Figure::None));
        Self {
            what: what.into(),
            figures: names.iter().copied().zip(figures).collect(),
        }
    }

    pub(crate) fn as_json(&self) -> Value {
        let figures = self.figures.iter();
        let figures = figures.map(|(name, figure)| ((*name).to_owned(), figure.as_json()));
        json!({ "what": self.what, "figures": Value::Object(figures.collect()) })
    }
}

impl Figure {
    /// A count; [`Figure::None`] above `i64::MAX`.
    pub(crate) fn count(count: impl TryInto<i64>) -> Self {
        count.try_into().map_or(Self::None, Self::Count)
    }

    fn as_json(&self) -> Value {
        // No more digits than the table has.
        let rounded = |value: f64, digits: usize| {
            let unit = 10_f64.powi(digits as i32);
            (value * unit).round() / unit
        };
        match *self {
            Self::Count(count) => json!(count),
            Self::Number(value, digits) => json!(rounded(value, digits)),
            Self::Spread {
                median,
                low,
                high,
                digits,
            } => {
                let [median, low, high] = [median, low, high].map(|one| rounded(one, digits));
                json!({ "median": median, "low": low, "high": high })
            }
            Self::Share(count, of) => json!({ "count": count, "of": of }),
            Self::None => Value::Null,
        }
    }

    /// Reads a figure written by [`Row::as_json`], with that many digits; spreads are not read.
    pub(crate) fn from_json(value: &Value, digits: usize) -> Self {
        let share = || Some((value["count"].as_i64()?, value["of"].as_i64()?));
        if let Some(count) = value.as_i64() {
            Self::Count(count)
        } else if let Some(number) = value.as_f64() {
            Self::Number(number, digits)
        } else {
            share().map_or(Self::None, |(count, of)| Self::Share(count, of))
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Number(value, digits) => write!(f, "{value:.digits$}"),
            Self::Spread {
                median,
                low,
                high,
                digits,
            } => write!(f, "{median:.digits$} ({low:.digits$}-{high:.digits$})"),
            Self::Share(count, of) => write!(f, "{count} of {of}"),
            Self::None => f.write_str("-"),
        }
    }
}

/// Markdown tables: a row whose figure names differ from the previous row's starts a new one.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut before: Vec<&str> = Vec::new();
    for row in rows {
        let names: Vec<&str> = row.figures.iter().map(|(name, _)| *name).collect();
        if names != before {
            if !before.is_empty() {
                text.push('\n');
            }
            let _ = writeln!(
                text,
                "| | {} |\n|---|{}",
                names.join(" | "),
                "---|".repeat(names.len())
            );
            before = names;
        }
        let figures: Vec<String> = row
            .figures
            .iter()
            .map(|(_, figure)| figure.to_string())
            .collect();
        let _ = writeln!(text, "| {} | {} |", row.what, figures.join(" | "));
    }
    text
}

/// The value below which that share of the values lies.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len().saturating_sub(1)) as f64 * share;
    values
        .get(index.round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// The median.
pub(crate) fn median(values: &mut [f64], digits: usize) -> Figure {
    Figure::Number(quantile(values, 0.5), digits)
}

/// Median and middle half.
pub(crate) fn spread(values: &mut [f64], digits: usize) -> Figure {
    let [low, median, high] = [0.25, 0.5, 0.75].map(|share| quantile(values, share));
    Figure::Spread {
        median,
        low,
        high,
        digits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_text_in_tables_and_numbers_in_json() {
        let cases = [
            (Figure::Count(3), "3", json!(3)),
            (Figure::Number(1.0, 2), "1.00", json!(1.0)),
            (Figure::Number(0.126, 2), "0.13", json!(0.13)),
            (
                spread(&mut [4.0, 1.0, 2.0, 3.0, 5.0], 1),
                "3.0 (2.0-4.0)",
                json!({"median": 3.0, "low": 2.0, "high": 4.0}),
            ),
            (Figure::Share(0, 7), "0 of 7", json!({"count": 0, "of": 7})),
            (Figure::None, "-", Value::Null),
        ];
        for (figure, text, json) in cases {
            assert_eq!(figure.to_string(), text);
            assert_eq!(figure.as_json(), json);
            if !matches!(figure, Figure::Spread { .. }) {
                let read = Figure::from_json(&json, 2);
                assert_eq!(read.to_string(), text);
            }
        }
    }

    #[test]
    fn different_figures_start_a_new_table() {
        let rows = [
            Row::new("a").with("x", Figure::Count(1)),
            Row::new("b").with("x", Figure::Count(2)),
            Row::of("c", &["y", "z"], [Figure::Count(3)]),
        ];
        let expected = "| | x |\n|---|---|\n| a | 1 |\n| b | 2 |\n\n\
                        | | y | z |\n|---|---|---|\n| c | 3 | - |\n";
        assert_eq!(table(&rows), expected);
    }
}
