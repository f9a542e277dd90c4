//! Files that appear whole or not at all: bytes enter, a finished file leaves.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

/// Writes a file through `write`, then renames it into place: whoever opens `path` sees the old content or the new, never a part.
///
/// The temporary file lies in the folder of `path`, so that the rename stays on one file system; it is removed when
/// `write` fails. The data reach the disk before the rename.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".fewbits-").suffix(".part");
    #[cfg(unix)]
    {
        // Temporary files are private by default; results are ordinary files, subject to the umask.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    // Its errors name the temporary file, which nobody knows.
    let mut temporary = builder.tempfile_in(folder).map_err(|e| io::Error::from(e.kind()))?;
    let mut buffered = BufWriter::new(temporary.as_file_mut());
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    temporary.as_file().sync_all()?;
    temporary.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomically(&path, |w| w.write_all(b"first")).unwrap();
        let failed = write_atomically(&path, |w| {
            w.write_all(b"second")?;
            Err(io::Error::other("interrupted"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
