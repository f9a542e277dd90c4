//! JSON that a person can read: objects spread over lines down to the second level, and everything deeper, with every list, on
//! one line. Each tensor of a plan is then one line.

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use std::io::{self, Write};

/// Objects nested deeper than this stay on one line.
const SPREAD: usize = 2;

#[derive(Default)]
struct OneLineEach {
    depth: usize,
    empty: bool,
}

pub(super) fn to_vec(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, OneLineEach::default()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

impl OneLineEach {
    fn line<W: ?Sized + Write>(&self, writer: &mut W, depth: usize) -> io::Result<()> {
        writer.write_all(b"\n")?;
        (0..depth).try_for_each(|_| writer.write_all(b"  "))
    }
}

impl Formatter for OneLineEach {
    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        if self.depth < SPREAD && !self.empty {
            self.line(writer, self.depth)?;
        }
        self.empty = false;
        writer.write_all(b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.empty = false;
        if !first {
            writer.write_all(if self.depth > SPREAD { b", " } else { b"," })?;
        }
        if self.depth > SPREAD { Ok(()) } else { self.line(writer, self.depth) }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn two_levels_are_spread_and_lists_are_not() {
        let value =
            json!({"a": [1, 2.5, []], "b": {}, "c": {"d": {"e": {"f": [0]}, "g": 1}}, "h": [{"i": {"j": 0}}, {}]});
        let expected = "{\n  \"a\": [1, 2.5, []],\n  \"b\": {},\n  \"c\": {\n    \"d\": {\"e\": {\"f\": [0]}, \"g\": 1}\n  },\n  \
                        \"h\": [{\n    \"i\": {\"j\": 0}\n  }, {}]\n}\n";
        let bytes = super::to_vec(&value).unwrap();
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), expected);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&bytes).unwrap(), value);
    }
}
