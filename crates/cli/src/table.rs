//! Lists as columns without lines around them, as wide as the terminal at most.

use comfy_table::{ContentArrangement, Table, presets};

use crate::terminal;

/// Rows below headings. A pipe gets each row on one line, however long; a narrow terminal gets wrapped cells.
pub(crate) fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    lay_out(headings, rows, terminal::stdout_columns())
}

fn lay_out(
    headings: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
    width: Option<u16>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings).add_rows(rows);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: [&str; 3] = ["web", "debian:bookworm", "3m"];

    fn row() -> Vec<String> {
        ROW.map(str::to_owned).to_vec()
    }

    #[test]
    fn columns_stand_under_their_headings() {
        let expected = "NAME  IMAGE            AGE\nweb   debian:bookworm  3m\n";
        assert_eq!(lay_out(&["NAME", "IMAGE", "AGE"], [row()], None), expected);
    }

    #[test]
    fn a_narrow_terminal_loses_no_character() {
        let text = lay_out(&["NAME", "IMAGE", "AGE"], [row()], Some(20));
        assert!(text.lines().all(|line| line.chars().count() <= 20), "{text}");
        let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
        assert_eq!(letters(&text), "NAMEIMAGEAGE".len() + ROW.concat().len(), "{text}");
    }

    #[test]
    fn an_empty_list_still_says_what_it_lists() {
        assert_eq!(lay_out(&["NAME", "AGE"], [], None), "NAME  AGE\n");
    }
}
