//! The table of times behind a latency budget, as a file.

use crate::Error;
use fewbits_files::write_atomically;
use fewbits_search::LatencyTable;
use std::{io::Write, path::Path};

/// Reads a table.
///
/// # Errors
/// [`Error::Io`]; [`Error::Usage`] if the file is no table.
pub fn load(path: &Path) -> Result<LatencyTable, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    serde_json::from_str(&text).map_err(|error| Error::Usage {
        what: format!("`{}` is no latency table: {error}", path.display()),
        hint: "`fewbits bench MODEL --latency-table FILE` writes one".into(),
    })
}

/// Writes a table.
///
/// # Errors
/// [`Error::Io`].
pub fn save(table: &LatencyTable, path: &Path) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(table).expect("names and numbers are valid JSON");
    write_atomically(path, |file| file.write_all(text.as_bytes())).map_err(Error::io("write", path))
}
