//! The rows that a benchmark ends with, as a table for people and as JSON for `docs/performance.md`.

use std::{fs, io, path::Path};

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Deserializer, Serialize};

use crate::stats::{median, quantile, ratio};

/// One line of the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured, for people: `writes, 64 clients`.
    pub name: String,
    /// Of `ours` and `baseline`.
    pub unit: String,
    /// Median; not a number if nothing was measured, for which JSON says null.
    #[serde(deserialize_with = "number")]
    pub ours: f64,
    /// Median; absent where there is nothing to compare with.
    pub baseline: Option<f64>,
    /// What it was compared with, with its version.
    pub baseline_name: Option<String>,
    /// Median of ours / baseline, pair by pair.
    pub ratio: Option<f64>,
    /// Tenth and ninetieth percentile of the ratios or, without a baseline, of ours.
    #[serde(deserialize_with = "numbers")]
    pub spread: (f64, f64),
    /// What it should be, for people: `ratio >= 3`.
    pub goal: Option<String>,
    /// Whether it is.
    pub met: Option<bool>,
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

fn numbers<'de, D: Deserializer<'de>>(from: D) -> Result<(f64, f64), D::Error> {
    let (low, high) = Deserialize::deserialize(from)?;
    let or_none = |number: Option<f64>| number.unwrap_or(f64::NAN);
    Ok((or_none(low), or_none(high)))
}

/// What a row should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Ours / baseline is at least this.
    RatioAtLeast(f64),
    /// Ours / baseline is at most this.
    RatioAtMost(f64),
    /// Ours is at most this, in the unit of the row.
    AtMost(f64),
}

impl Row {
    /// Two series measured in turn.
    pub fn compared(
        name: impl Into<String>,
        unit: &str,
        ours: &[f64],
        baseline: &[f64],
        baseline_name: &str,
        goal: Option<Goal>,
    ) -> Self {
        let found = ratio(ours, baseline);
        Self {
            name: name.into(),
            unit: unit.into(),
            ours: median(ours),
            baseline: Some(median(baseline)),
            baseline_name: Some(baseline_name.into()),
            ratio: Some(found.median),
            spread: found.spread,
            goal: None,
            met: None,
        }
        .judged(goal)
    }

    /// One series with nothing to compare it with.
    pub fn alone(name: impl Into<String>, unit: &str, ours: &[f64], goal: Option<Goal>) -> Self {
        Self {
            name: name.into(),
            unit: unit.into(),
            ours: median(ours),
            baseline: None,
            baseline_name: None,
            ratio: None,
            spread: (quantile(ours, 0.1), quantile(ours, 0.9)),
            goal: None,
            met: None,
        }
        .judged(goal)
    }

    fn judged(mut self, goal: Option<Goal>) -> Self {
        // Nothing measured meets no goal: NaN compares as false.
        let (text, met) = match goal {
            None => return self,
            Some(Goal::RatioAtLeast(least)) => {
                (format!("ratio >= {least}"), self.ratio.is_some_and(|found| found >= least))
            }
            Some(Goal::RatioAtMost(most)) => {
                (format!("ratio <= {most}"), self.ratio.is_some_and(|found| found <= most))
            }
            Some(Goal::AtMost(most)) => (format!("<= {most} {}", self.unit), self.ours <= most),
        };
        (self.goal, self.met) = (Some(text), Some(met));
        self
    }
}

/// Three significant digits, without an exponent.
pub fn figure(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        v if v >= 0.1 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}

/// The table for the terminal.
pub fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["WHAT", "OURS", "BASELINE", "UNIT", "RATIO", "SPREAD (P10..P90)", "GOAL", "MET"]);
    for row in rows {
        table.add_row(cells(row));
    }
    for column in [1, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// What a file holds, as a table in Markdown.
///
/// # Errors
/// There is no such file, or it is something else.
pub fn markdown(path: &Path) -> io::Result<String> {
    let rows: Vec<Row> = serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)?;
    let mut text = "| what | ours | baseline | unit | ratio | spread (p10..p90) | goal | met |\n\
                    | --- | ---: | ---: | --- | ---: | --- | --- | --- |\n"
        .to_owned();
    for row in &rows {
        text += &format!("| {} |\n", cells(row).join(" | "));
    }
    Ok(text)
}

fn cells(row: &Row) -> [String; 8] {
    let (low, high) = row.spread;
    let baseline = match (&row.baseline, &row.baseline_name) {
        (Some(value), Some(name)) => format!("{} ({name})", figure(*value)),
        _ => String::new(),
    };
    [
        row.name.clone(),
        figure(row.ours),
        baseline,
        row.unit.clone(),
        row.ratio.map(figure).unwrap_or_default(),
        format!("{}..{}", figure(low), figure(high)),
        row.goal.clone().unwrap_or_default(),
        row.met.map(|met| if met { "yes" } else { "NO" }.to_owned()).unwrap_or_default(),
    ]
}

/// Writes the rows, replacing those of the same name and keeping the others: areas can be measured one by one.
pub fn write(path: &Path, rows: &[Row]) -> io::Result<()> {
    let kept: Vec<serde_json::Value> = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let is_new = |value: &serde_json::Value| rows.iter().any(|row| value["name"] == row.name.as_str());
    let mut all: Vec<_> = kept.into_iter().filter(|value| !is_new(value)).collect();
    for row in rows {
        all.push(serde_json::to_value(row).map_err(io::Error::other)?);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, serde_json::to_vec_pretty(&all).map_err(io::Error::other)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]
mod tests {
    use super::*;

    #[test]
    fn a_lost_row_says_so() {
        let row =
            Row::compared("w", "1/s", &[20.0, 22.0], &[10.0, 10.0], "b 1", Some(Goal::RatioAtLeast(3.0)));
        assert_eq!((row.ratio, row.met), (Some(2.1), Some(false)));
        assert!(table(&[row]).to_string().contains("NO"));
    }

    #[test]
    fn goals_are_met_or_not_by_ratio_and_by_value() {
        let compared = |goal| Row::compared("w", "ms", &[1.0], &[4.0], "b", Some(goal)).met;
        assert_eq!(compared(Goal::RatioAtMost(0.5)), Some(true));
        assert_eq!(compared(Goal::RatioAtLeast(0.5)), Some(false));
        assert_eq!(Row::alone("w", "ms", &[9.0], Some(Goal::AtMost(10.0))).met, Some(true));
        // Nothing measured, nothing met.
        assert_eq!(Row::alone("w", "ms", &[], Some(Goal::AtMost(10.0))).met, Some(false));
    }

    #[test]
    fn a_file_keeps_the_rows_of_other_areas_and_replaces_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/control.json");
        write(&path, &[Row::alone("a", "ms", &[1.0], None), Row::alone("b", "ms", &[1.0], None)]).unwrap();
        write(&path, &[Row::alone("b", "ms", &[2.0], None), Row::alone("c", "ms", &[], None)]).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let found: Vec<_> = rows.iter().map(|row| (row["name"].as_str(), row["ours"].as_f64())).collect();
        assert_eq!(found, [(Some("a"), Some(1.0)), (Some("b"), Some(2.0)), (Some("c"), None)]);
        let text = markdown(&path).unwrap();
        assert!(text.lines().count() == 5 && text.contains("| b | 2.00 |  | ms |"), "{text}");
    }

    #[test]
    fn figures_have_three_digits_that_matter() {
        let shown = [1234.5, 12.345, 1.2345, 0.12345, 0.012345].map(figure);
        assert_eq!(shown, ["1234", "12.3", "1.23", "0.123", "0.0123"]);
    }
}
