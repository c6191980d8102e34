//! Events that are too many under load to be logged one by one: of each kind, one line a second at most, with the number of
//! events since the last line.

use std::mem;
use std::time::{Duration, Instant};

/// The least time between two lines of a kind.
const INTERVAL: Duration = Duration::from_secs(1);

/// Makes the line for a number of events.
pub type Message = Box<dyn Fn(u64) -> String + Send>;

/// The kinds of events that have come: a few, for as long as the process lives.
#[derive(Default)]
pub struct Throttle(Vec<Kind>);

struct Kind {
    name: &'static str,
    last_line: Instant,
    /// Events since then.
    count: u64,
    /// Of the newest of them.
    message: Option<Message>,
}

impl Kind {
    /// Returns when the next line is due; `None` if there is nothing to log.
    fn due(&self) -> Option<Instant> {
        (self.count > 0).then(|| self.last_line + INTERVAL)
    }
}

impl Throttle {
    /// Returns true if an event that comes `now` may be logged at once. Its caller then does so.
    pub fn allows(&mut self, name: &'static str, now: Instant) -> bool {
        match self.0.iter_mut().find(|kind| kind.name == name) {
            Some(kind) => {
                let is_allowed = kind.count == 0 && now >= kind.last_line + INTERVAL;
                if is_allowed {
                    kind.last_line = now;
                }
                is_allowed
            }
            None => {
                self.0.push(Kind {
                    name,
                    last_line: now,
                    count: 0,
                    message: None,
                });
                true
            }
        }
    }

    /// Counts an event that is not [allowed](Self::allows). Returns true if it is the first since the last line.
    pub fn defer(&mut self, name: &'static str, message: Message) -> bool {
        let Some(kind) = self.0.iter_mut().find(|kind| kind.name == name) else {
            return false;
        };
        kind.count += 1;
        kind.message = Some(message);
        kind.count == 1
    }

    /// Returns when the next line is due; `None` if there is nothing to log.
    pub fn due(&self) -> Option<Instant> {
        self.0.iter().filter_map(Kind::due).min()
    }

    /// Returns the lines that are due `now`, or all when the log ends.
    pub fn take_due(&mut self, now: Instant, is_ending: bool) -> Vec<String> {
        let is_due = |kind: &&mut Kind| kind.due().is_some_and(|due| due <= now || is_ending);
        let due = self.0.iter_mut().filter(is_due);
        due.filter_map(|kind| {
            kind.last_line = now;
            let count = mem::take(&mut kind.count);
            kind.message.take().map(|message| message(count))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_events_are_counted_until_the_next_line_is_due() {
        let mut throttle = Throttle::default();
        let message = || -> Message { Box::new(|count| format!("{count} events")) };
        let start = Instant::now();
        assert!(throttle.allows("a", start));
        assert!(throttle.allows("b", start), "kinds are independent");
        assert!(!throttle.allows("a", start));
        assert!(throttle.defer("a", message()));
        assert!(!throttle.defer("a", message()));

        assert!(throttle.take_due(start, false).is_empty());
        let due = start + INTERVAL;
        assert_eq!(throttle.due(), Some(due));
        assert_eq!(throttle.take_due(due, false), ["2 events"]);
        assert_eq!(throttle.due(), None);

        assert!(!throttle.allows("a", due));
        assert!(throttle.defer("a", message()));
        assert_eq!(throttle.take_due(due, true), ["1 events"]);
        assert!(throttle.allows("a", due + INTERVAL));
    }
}
