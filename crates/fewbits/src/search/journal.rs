//! Measured assignments on disk. A search is a function of its seed and of what it measured, so that one that is begun again and gets
//! known answers from here goes on where it was killed.

use crate::Error;
use fewbits_files::write_atomically;
use fewbits_search::problem::Problem;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

/// A file of JSON lines: what was asked for, then `[[choices], damage]` for each assignment.
#[derive(Debug, Default)]
pub struct Journal {
    file: Option<(File, PathBuf)>,
    known: HashMap<Vec<usize>, f64>,
    /// The first of those with the least damage.
    best: Option<(Vec<usize>, f64)>,
}

impl Journal {
    /// The journal at `path` of a search that `asked` describes; with `resume` what it holds is kept. Without a path nothing is written.
    ///
    /// # Errors
    /// [`Error::Usage`] if the file is of another search or a line cannot be read, [`Error::Io`].
    pub fn open(path: Option<&Path>, asked: &Value, resume: bool) -> Result<Self, Error> {
        let Some(path) = path else { return Ok(Journal::default()) };
        let text = match std::fs::read_to_string(path) {
            Ok(text) if resume => text,
            Err(error) if resume && error.kind() != ErrorKind::NotFound => return Err(Error::io("read", path)(error)),
            _ => String::new(),
        };
        // A line that the search was killed in has no end.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let mut lines = whole.lines();
        if lines.next().is_some_and(|head| serde_json::from_str::<Value>(head).ok().as_ref() != Some(asked)) {
            return Err(Error::Usage {
                what: format!("`{}` was written by another search", path.display()),
                hint: "resume with the same command, or delete it to begin anew".into(),
            });
        }
        let measured = |(i, line): (usize, &str)| {
            // A damage that is no number is written as null.
            let (choices, damage): (_, Option<f64>) = serde_json::from_str(line).map_err(|error| Error::Usage {
                what: format!("line {} of `{}` is no measurement: {error}", i + 2, path.display()),
                hint: "take the line out, or begin anew without --resume".into(),
            })?;
            Ok((choices, damage.unwrap_or(f64::NAN)))
        };
        let known: Vec<(Vec<usize>, f64)> = lines.enumerate().map(measured).collect::<Result<_, Error>>()?;
        let begin = if whole.is_empty() { format!("{asked}\n") } else { whole.to_string() };
        write_atomically(path, |file| file.write_all(begin.as_bytes())).map_err(Error::io("write", path))?;
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io("write", path))?;
        let mut journal = Journal { file: Some((file, path.into())), ..Journal::default() };
        known.into_iter().for_each(|(choices, damage)| journal.remember(choices, damage));
        Ok(journal)
    }

    /// Refuses what is no assignment of `problem`.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn check(&self, problem: &Problem) -> Result<(), Error> {
        let is_one = |choices: &Vec<usize>| {
            choices.len() == problem.items.len()
                && problem.items.iter().zip(choices).all(|(item, &choice)| choice < item.widths.len())
        };
        match &self.file {
            Some((_, path)) if !self.known.keys().all(is_one) => Err(Error::Usage {
                what: format!("`{}` holds assignments of other layers or widths", path.display()),
                hint: "begin anew without --resume".into(),
            }),
            _ => Ok(()),
        }
    }

    fn remember(&mut self, choices: Vec<usize>, damage: f64) {
        if !damage.is_nan() && self.best.as_ref().is_none_or(|(_, least)| damage < *least) {
            self.best = Some((choices.clone(), damage));
        }
        self.known.insert(choices, damage);
    }

    /// The damage of `choices`, if it was measured.
    pub fn get(&self, choices: &[usize]) -> Option<f64> {
        self.known.get(choices).copied()
    }

    /// The assignment with the least damage, of equals the first that was measured.
    pub fn best(&self) -> Option<&[usize]> {
        self.best.as_ref().map(|(choices, _)| choices.as_slice())
    }

    /// Adds one, and returns the damage as it will be read again: NaN if it is not finite.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, choices: &[usize], damage: f64) -> Result<f64, Error> {
        let damage = if damage.is_finite() { damage } else { f64::NAN };
        self.remember(choices.to_vec(), damage);
        if let Some((file, path)) = &mut self.file {
            writeln!(file, "{}", json!([choices, damage])).map_err(Error::io("write", path))?;
        }
        Ok(damage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewbits_search::problem::{Item, Kind};

    #[test]
    fn what_was_measured_is_known_again_and_a_torn_line_is_not() {
        let folder = std::env::temp_dir().join(format!("fewbits-journal-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.search.jsonl");
        let asked = json!({"budget": "avg-bits=4"});
        let mut journal = Journal::open(Some(&path), &asked, false).unwrap();
        journal.add(&[1, 2], 0.1 + 0.2).unwrap();
        journal.add(&[3, 0], 0.25).unwrap();
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("[[4,4],0.");
        std::fs::write(&path, text).unwrap();
        let mut again = Journal::open(Some(&path), &asked, true).unwrap();
        assert_eq!((again.get(&[1, 2]), again.get(&[4, 4])), (Some(0.1 + 0.2), None));
        assert_eq!(again.best(), Some(&[3, 0][..]));
        assert!(Journal::open(Some(&path), &json!({"budget": "avg-bits=3"}), true).is_err());
        assert!(again.add(&[5, 5], f64::INFINITY).unwrap().is_nan());
        let again = Journal::open(Some(&path), &asked, true).unwrap();
        assert!(again.get(&[5, 5]).unwrap().is_nan() && again.best() == Some(&[3, 0][..]));
        let broken = std::fs::read_to_string(&path).unwrap().replace("[[3,0]", "[[3,0");
        std::fs::write(&path, &broken).unwrap();
        let error = Journal::open(Some(&path), &asked, true).unwrap_err();
        assert!(error.to_string().contains("line 3") && error.hint().is_some(), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), broken, "nothing is lost");
        assert!(Journal::open(Some(&folder), &asked, true).is_err(), "a folder is no empty journal");
        let item = |widths: &[u8]| Item { name: "w".into(), kind: Kind::Weight, widths: widths.into(), damage: vec![] };
        let mut problem = Problem { items: vec![item(&[2, 4]), item(&[2, 4, 8])], limits: vec![] };
        let mut short = Journal::open(Some(&path), &asked, false).unwrap();
        short.add(&[1, 2], 0.5).unwrap();
        let again = Journal::open(Some(&path), &asked, true).unwrap();
        assert!(again.check(&problem).is_ok());
        problem.items[1].widths.pop();
        assert!(again.check(&problem).unwrap_err().to_string().contains("other layers or widths"));
        problem.items.pop();
        assert!(again.check(&problem).is_err());
        let anew = Journal::open(Some(&path), &asked, false).unwrap();
        assert_eq!(anew.get(&[1, 2]), None);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
