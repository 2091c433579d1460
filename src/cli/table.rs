//! Tables for people.

/// The longest cell that is shown whole. A message's From may have millions of characters, and padding over 65,535
/// panics.
const WIDEST: usize = 1000;

/// Rows under their headings, columns padded; the last column is not.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    Pages::new(headings).page(rows)
}

/// A table that is too long to be held: page by page, each column as wide as on the pages before, or wider.
pub(super) struct Pages {
    headings: Vec<String>,
    widths: Vec<usize>,
}

impl Pages {
    /// Under these headings, which the first page has.
    pub(super) fn new(headings: &[&str]) -> Self {
        Self { headings: headings.iter().map(ToString::to_string).collect(), widths: vec![0; headings.len()] }
    }

    /// The next page.
    pub(super) fn page(&mut self, rows: &[Vec<String>]) -> String {
        let headings = std::mem::take(&mut self.headings);
        let mut lines: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| cut(cell)).collect()).collect();
        if !headings.is_empty() {
            lines.insert(0, headings);
        }
        for line in &lines {
            for (width, cell) in self.widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: &Vec<String>| {
            let cells = cells.iter().zip(&self.widths);
            let padded: Vec<String> = cells.map(|(cell, &width)| format!("{cell:width$}")).collect();
            padded.join("  ").trim_end().to_owned()
        };
        lines.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// A text in lines of at most `width` characters (longer words stay whole), the later ones indented.
pub(super) fn wrap(text: &str, width: usize, indent: usize) -> String {
    let mut wrapped = String::with_capacity(text.len());
    let mut length = 0;
    for word in text.split(' ') {
        let more = word.chars().count();
        if length > 0 && length + 1 + more > width {
            wrapped.push('\n');
            wrapped.extend(std::iter::repeat_n(' ', indent));
            length = 0;
        } else if length > 0 {
            wrapped.push(' ');
            length += 1;
        }
        wrapped.push_str(word);
        length += more;
    }
    wrapped
}

/// A text in which nothing steers a terminal: addresses, replies and messages are others' words.
pub(super) fn harmless(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', "?")
}

fn cut(cell: &str) -> String {
    let cell = harmless(cell).replace('\n', "?");
    match cell.char_indices().nth(WIDEST) {
        Some((end, _)) => format!("{}…", cell.get(..end).unwrap_or_default()),
        None => cell,
    }
}

/// A time as people compare it: to the second, UTC.
pub(super) fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// A size as people compare it.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", bytes / 1_024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_wrapped_between_words() {
        assert_eq!(wrap("one two three", 7, 2), "one two\n  three");
        assert_eq!(wrap("unbreakable é x", 3, 1), "unbreakable\n é x");
        assert_eq!(wrap("", 3, 1), "");
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".to_owned(), "long cell".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["id", "b", "end"], &rows), "id  b          end\na   long cell  x");
    }

    #[test]
    fn pages_keep_their_columns() {
        let row = |cell: &str| vec![vec![cell.to_owned(), "x".to_owned()]];
        let mut pages = Pages::new(&["id", "end"]);
        let shown = [pages.page(&row("long")), pages.page(&row("a")), pages.page(&row("longer"))];
        assert_eq!(shown, ["id    end\nlong  x", "a     x", "longer  x"]);
    }

    #[test]
    fn a_cell_without_end_is_cut() {
        let rows = vec![vec!["ä".repeat(70_000), "x".to_owned()]];
        let shown = table(&["from", "end"], &rows);
        assert!(shown.ends_with(&format!("\n{}…  x", "ä".repeat(WIDEST))));
    }

    #[test]
    fn nothing_in_a_cell_steers_the_terminal() {
        let rows = vec![vec!["\u{1b}]0;x\u{7}a".to_owned(), "\u{9b}2Jb".to_owned()]];
        assert_eq!(table(&["from", "to"], &rows), "from     to\n?]0;x?a  ?2Jb");
    }
}
