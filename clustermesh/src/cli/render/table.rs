//! kubectl's kind of table: upper-case headings, columns by spaces, no lines.

use crate::cli::out::{Paint, Tone};

/// Between columns.
const GAP: usize = 3;

/// One field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: clean(&text.into()), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// Values come from users and peers: a table has no line breaks and obeys no escape sequences.
fn clean(text: &str) -> String {
    if text.is_empty() {
        "<none>".to_owned()
    } else {
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

/// Rows under headings.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    widths: Vec<usize>,
}

impl Table {
    pub(crate) fn new(headings: impl IntoIterator<Item = &'static str>) -> Self {
        let headings: Vec<_> = headings.into_iter().collect();
        let widths = headings.iter().map(|h| h.len()).collect();
        Self { headings, rows: Vec::new(), widths }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        for (width, cell) in self.widths.iter_mut().zip(&cells) {
            *width = (*width).max(cell.text.chars().count());
        }
        self.rows.push(cells);
    }

    /// All of it. For a watch, rows that come later are rendered with [`Table::later`].
    pub(crate) fn render(&self, headings: bool, paint: Paint) -> String {
        let mut out = String::new();
        if headings {
            let cells: Vec<_> = self.headings.iter().map(|h| Cell::toned(*h, Tone::Heading)).collect();
            out.push_str(&self.format(&cells, paint));
        }
        for row in &self.rows {
            out.push_str(&self.format(row, paint));
        }
        out
    }

    /// One more row, in the columns as they are.
    pub(crate) fn later(&mut self, cells: Vec<Cell>, paint: Paint) -> String {
        self.row(cells);
        let row = self.rows.pop().unwrap_or_default();
        self.format(&row, paint)
    }

    fn format(&self, cells: &[Cell], paint: Paint) -> String {
        let mut line = String::new();
        let last = cells.len().saturating_sub(1);
        for (i, (cell, width)) in cells.iter().zip(&self.widths).enumerate() {
            line.push_str(&paint.paint(cell.tone, &cell.text));
            if i < last {
                let fill = width.saturating_sub(cell.text.chars().count()) + GAP;
                line.extend(std::iter::repeat_n(' ', fill));
            }
        }
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_field() {
        let mut table = Table::new(["NAME", "AGE"]);
        table.row(vec!["a-long-name".into(), "5s".into()]);
        table.row(vec!["b".into(), "".into()]);
        assert_eq!(
            table.render(true, Paint::PLAIN),
            "NAME          AGE\na-long-name   5s\nb             <none>\n"
        );
        assert_eq!(table.later(vec!["c".into(), "1s".into()], Paint::PLAIN), "c             1s\n");
        assert_eq!(table.render(false, Paint::PLAIN).lines().count(), 2);
    }

    #[test]
    fn fields_cannot_break_out_of_their_row() {
        let mut table = Table::new(["NAME"]);
        table.row(vec!["a\nb\u{1b}[2J".into()]);
        assert_eq!(table.render(false, Paint::PLAIN), "a b [2J\n");
    }
}
