//! Descriptions of single fields, for the columns of tables.
//!
//! Keeps only what was asked for, which the code bounds: every column of every table.
//! The embedded descriptions are unpacked once for each table not shown before.

use std::collections::HashMap;
use std::sync::LazyLock;

use kinds::table::{Column, Words, words};
use parking_lot::Mutex;

use super::openapi::DESCRIPTIONS;
use super::schema::decode;

/// By definition and field.
type Known = HashMap<(&'static str, &'static str), String>;

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

/// The descriptions of a kind's columns, in order.
pub fn of_columns(group: &str, kind: &str, columns: &[Column]) -> Vec<String> {
    let sources: Vec<Option<Words>> =
        columns.iter().map(|column| words(group, kind, column.name)).collect();
    let mut known = KNOWN.lock();
    let unknown = |known: &Known| {
        sources.iter().flatten().any(|source| match source {
            Words::Field(definition, field) => !known.contains_key(&(*definition, *field)),
            Words::Own(_) => false,
        })
    };
    if unknown(&known) {
        let all = decode(DESCRIPTIONS);
        for source in sources.iter().flatten() {
            if let Words::Field(definition, field) = source {
                let text = all.get(*definition).and_then(|fields| fields[*field].as_str());
                known.insert((*definition, *field), text.unwrap_or_default().to_owned());
            }
        }
    }
    columns
        .iter()
        .zip(&sources)
        .map(|(column, source)| match source {
            Some(Words::Field(definition, field)) => {
                known.get(&(*definition, *field)).cloned().unwrap_or_default()
            }
            Some(Words::Own(text)) => (*text).to_owned(),
            None => format!("{} of the {kind}", column.name),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use kinds::resources::Catalog;
    use kinds::table::table;

    use super::*;

    #[test]
    fn every_source_is_a_field_that_has_words() {
        let catalog = Catalog::known();
        for resource in catalog.resources() {
            let columns = table(&resource.group, &resource.kind).columns;
            for (column, text) in
                columns.iter().zip(of_columns(&resource.group, &resource.kind, columns))
            {
                let own = words(&resource.group, &resource.kind, column.name);
                assert!(
                    !text.is_empty() || own == Some(Words::Own("")),
                    "{} {}",
                    resource.kind,
                    column.name
                );
            }
        }
    }
}
