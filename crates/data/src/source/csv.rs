//! Lists of labelled images: text with the header `file,class_index`.

use std::path::{Path, PathBuf};

use crate::DataError;

/// Reads a list: files (relative to the folder of the list) and labels. Other columns are ignored, fields may be quoted.
pub(crate) fn list(path: &Path) -> Result<(Vec<PathBuf>, Vec<usize>), DataError> {
    let bytes = std::fs::read(path).map_err(|e| DataError::io(path, "read", e))?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    let header = lines.next().unwrap_or_default();
    let names = fields(header);
    let column = |name: &str| names.iter().position(|n| n.trim() == name);
    let (Some(file), Some(class)) = (column("file"), column("class_index")) else {
        return Err(DataError::CsvHeader { path: path.to_path_buf(), found: header.chars().take(80).collect() });
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let (mut files, mut labels) = (Vec::new(), Vec::new());
    for (index, text) in lines.enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = index + 2;
        let row = fields(text);
        let label = row.get(class).and_then(|f| f.trim().parse().ok());
        let (Some(name), Some(label)) = (row.get(file).filter(|f| !f.is_empty()), label) else {
            let text = text.chars().take(80).collect();
            return Err(DataError::CsvRow { path: path.to_path_buf(), line, text });
        };
        let image = folder.join(name);
        if !image.is_file() {
            return Err(DataError::ListedImageMissing { path: path.to_path_buf(), line, image });
        }
        files.push(image);
        labels.push(label);
    }
    if files.is_empty() {
        return Err(DataError::Empty { path: path.to_path_buf(), deeper: None });
    }
    Ok((files, labels))
}

/// Splits a line at commas outside double quotes; a doubled quote inside quotes stands for one.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let field = fields.last_mut().expect("starts with one field and never shrinks");
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_fields() {
        assert_eq!(fields(r#"a,"b,c","d ""e""",,f"#), ["a", "b,c", "d \"e\"", "", "f"]);
    }
}
