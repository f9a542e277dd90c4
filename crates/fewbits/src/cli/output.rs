//! Where text goes: the only place that prints.

use super::{
    Format, Global,
    bar::{Bar, Lines},
};
use fewbits::{
    Error,
    progress::{Progress, Silent},
};
use serde::Serialize;
use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

/// The two streams, under the global flags.
#[derive(Debug)]
pub struct Output {
    /// Flags of every command.
    pub global: Global,
}

/// Checks, before anything long begins, that none of the files to be written is one that is read, or written already.
///
/// # Errors
/// [`Error::Usage`] for the first of which that is not so.
pub fn check_names<'a>(
    written: impl IntoIterator<Item = Option<&'a Path>>,
    read: impl IntoIterator<Item = Option<&'a Path>>,
) -> Result<(), Error> {
    let mut taken: Vec<PathBuf> = read.into_iter().flatten().filter(|file| file.is_file()).map(place).collect();
    for file in written.into_iter().flatten() {
        if taken.contains(&place(file)) {
            return Err(Error::Usage {
                what: format!("`{}` would be written over: it is named twice", file.display()),
                hint: "give each file that is written a name of its own".into(),
            });
        }
        taken.push(place(file));
    }
    Ok(())
}

/// Checks that their folders are there, and that none of them is a folder.
///
/// # Errors
/// [`Error::Usage`] for the first of which that is not so.
pub fn check_folders<'a>(files: impl IntoIterator<Item = Option<&'a Path>>) -> Result<(), Error> {
    let is_lost = |file: &&Path| file.parent().is_some_and(|folder| !folder.as_os_str().is_empty() && !folder.is_dir());
    match files.into_iter().flatten().find(|file| is_lost(file) || file.is_dir()) {
        None => Ok(()),
        Some(file) if file.is_dir() => Err(Error::Usage {
            what: format!("`{}` cannot be written: it is a folder", file.display()),
            hint: "name the file in it".into(),
        }),
        Some(file) => Err(Error::Usage {
            what: format!("`{}` cannot be written: there is no such folder", file.display()),
            hint: "make it first".into(),
        }),
    }
}

/// [`check_names`] and [`check_folders`].
///
/// # Errors
/// Theirs.
pub fn check_files<'a>(
    written: impl IntoIterator<Item = Option<&'a Path>> + Clone,
    read: impl IntoIterator<Item = Option<&'a Path>>,
) -> Result<(), Error> {
    check_names(written.clone(), read)?;
    check_folders(written)
}

/// Where `file` is, however it is named.
fn place(file: &Path) -> PathBuf {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = || folder.canonicalize().ok().zip(file.file_name()).map(|(folder, name)| folder.join(name));
    file.canonicalize().ok().or_else(beside).unwrap_or_else(|| file.into())
}

impl Output {
    pub fn new(global: Global) -> Self {
        Output { global }
    }

    /// Prints the result: `value` as JSON, or `text`. A closed pipe is no error.
    pub fn result<T: Serialize>(&self, value: &T, text: &str) {
        let json;
        let shown = match self.global.format {
            Format::Text => text,
            Format::Json => {
                json = serde_json::to_string_pretty(value).unwrap_or_else(|e| format!("{{\"error\": \"{e}\"}}"));
                &json
            }
        };
        let _ = writeln!(io::stdout().lock(), "{}", shown.trim_end());
    }

    /// A message about what is being done.
    pub fn note(&self, text: &str) {
        if !self.global.quiet {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// A message for those who asked for more.
    pub fn detail(&self, text: &str) {
        if self.global.verbose {
            self.note(text);
        }
    }

    /// An error message.
    pub fn error(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// A progress bar on a terminal, elsewhere the lines that stay.
    pub fn progress(&self) -> Box<dyn Progress> {
        match (self.global.quiet, io::stderr().is_terminal()) {
            (true, _) => Box::new(Silent),
            (false, true) => Box::new(Bar::default()),
            (false, false) => Box::new(Lines),
        }
    }
}
