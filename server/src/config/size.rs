//! Sizes of memory, as settings have them: `64MiB`.

use std::fmt;

/// A size in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MemorySize(pub u64);

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl MemorySize {
    /// Parses a whole number with a unit.
    pub fn parse(value: &str) -> Option<Self> {
        let bytes = UNITS.iter().find_map(|(name, unit)| {
            let number = value.strip_suffix(name)?;
            number.parse::<u64>().ok()?.checked_mul(*unit)
        });
        bytes.map(Self)
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let bytes = self.0;
        let unit = UNITS.iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
        match unit {
            Some((name, unit)) if bytes > 0 => write!(f, "{}{name}", bytes / unit),
            _ => write!(f, "{bytes} bytes"),
        }
    }
}
