//! Escapes text that a client, a guest or an operator has written, for a line of the log or of an error.

/// Escapes all but printable ASCII and printable characters of other scripts, as in `\u{1b}`.
pub fn escape_control(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // `escape_debug` would escape quotes and backslashes, too.
            ' '..='~' => out.push(c),
            _ => out.extend(c.escape_debug()),
        }
    }
    out
}
