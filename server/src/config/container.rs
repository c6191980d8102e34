//! The memory of the server's container, and the defaults that depend on it.

use std::fs;
use std::path::Path;

/// Memory of the program without connections and guests: up to 7 MB with a small component under load.
const BASE_BYTES: u64 = 8 << 20;

/// Memory of a connection at worst, in the server and in the kernel (docs/architecture.md).
const CONNECTION_BYTES: u64 = 32 << 10;

/// The defaults without a limit.
const CONNECTIONS: u64 = 10_000;
const GUEST_BYTES: u64 = 256 << 20;

const MIB: u64 = 1 << 20;

/// Returns the defaults of `MAX_CONNECTIONS` and of `GUEST_MEMORY_TOTAL` in bytes, for a limit in bytes and for the values
/// that are set. Guests get half of the memory, or what connections leave.
pub fn defaults(limit: Option<u64>, connections: Option<u32>, guests: Option<u64>) -> (u32, u64) {
    let Some(limit) = limit else {
        return (CONNECTIONS as u32, GUEST_BYTES);
    };
    let rest = limit.saturating_sub(BASE_BYTES);
    let for_guests = match connections {
        Some(connections) => rest.saturating_sub(u64::from(connections) * CONNECTION_BYTES),
        None => limit / 2,
    };
    let for_guests = (for_guests / MIB * MIB).clamp(MIB, GUEST_BYTES);
    let rest = rest.saturating_sub(guests.unwrap_or(for_guests));
    let for_connections = (rest / CONNECTION_BYTES).clamp(16, CONNECTIONS);
    (for_connections as u32, for_guests)
}

/// Returns the memory that the server needs at worst with these settings, in bytes.
pub fn needed(connections: u32, guests: u64) -> u64 {
    BASE_BYTES + guests + u64::from(connections) * CONNECTION_BYTES
}

/// Returns the memory limit of this process's control groups in bytes; `None` if there is none.
pub fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_of(&groups, &|path| fs::read_to_string(path).ok())
}

/// Returns the least limit of the groups that `/proc/self/cgroup` lists (cgroups(7)) and of their ancestors. In a container,
/// the listed path can be that of the host, while the mounted hierarchy begins at the container's own group.
fn limit_of(groups: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let (root, file) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                _ if controllers.split(',').any(|it| it == "memory") => {
                    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
                }
                _ => return None,
            };
            let path = Path::new(path.trim_start_matches('/'));
            let limits = path.ancestors().filter_map(|group| {
                let limit = read(&Path::new(root).join(group).join(file))?;
                // Without a limit, version 2 has `max`, and version 1 the largest multiple of a page in an i64.
                limit.trim().parse().ok().filter(|&limit| limit < 1 << 62)
            });
            limits.min()
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        limit_of(groups, &|path| {
            let (_, text) = files.iter().find(|(name, _)| Path::new(name) == path)?;
            Some((*text).to_owned())
        })
    }

    #[test]
    fn limit_is_the_least_of_a_group_and_its_ancestors() {
        for (groups, files, expected) in [
            (
                "0::/\n",
                &[("/sys/fs/cgroup/memory.max", "max\n")][..],
                None,
            ),
            (
                "0::/\n",
                &[("/sys/fs/cgroup/memory.max", "536870912\n")],
                Some(512 << 20),
            ),
            (
                "0::/pod/web\n",
                &[
                    ("/sys/fs/cgroup/pod/web/memory.max", "max\n"),
                    ("/sys/fs/cgroup/pod/memory.max", "1024\n"),
                ],
                Some(1024),
            ),
            (
                "9:cpu:/\n4:memory:/docker/1\n0::/\n",
                &[("/sys/fs/cgroup/memory/memory.limit_in_bytes", "33554432\n")],
                Some(32 << 20),
            ),
            (
                "4:memory:/docker/1\n",
                &[(
                    "/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes",
                    "9223372036854771712\n",
                )],
                None,
            ),
            ("0::/\n", &[], None),
            ("", &[], None),
        ] {
            assert_eq!(limit(groups, files), expected, "{groups:?}");
        }
    }

    #[test]
    fn defaults_fit_the_container() {
        const MB_512: Option<u64> = Some(512 << 20);
        for (limit, connections, guests, expected) in [
            (None, None, None, (10_000, 256)),
            (Some(8 << 30), None, None, (10_000, 256)),
            (MB_512, None, None, (7936, 256)),
            (Some(256 << 20), None, None, (3840, 128)),
            (Some(32 << 20), None, None, (256, 16)),
            (Some(4 << 20), None, None, (16, 2)),
            (MB_512, Some(1000), None, (7936, 256)),
            (MB_512, Some(12_000), None, (10_000, 129)),
            (MB_512, Some(20_000), None, (10_000, 1)),
            (MB_512, None, Some(400 << 20), (3328, 256)),
            (MB_512, None, Some(1 << 30), (16, 256)),
        ] {
            let (for_connections, for_guests) = defaults(limit, connections, guests);
            assert_eq!((for_connections, for_guests >> 20), expected, "{limit:?}");
            if connections.is_none() && guests.is_none() && limit > Some(16 << 20) {
                assert!(limit.is_none_or(|limit| needed(for_connections, for_guests) <= limit));
            }
        }
    }
}
