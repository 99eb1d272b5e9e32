//! Groups of the machine's users.

use std::path::Path;

/// The groups of this machine (group(5)).
const GROUPS: &str = "/etc/group";

/// The number of a group, by name or number; `None` where the machine has no such group. A group of a
/// directory service has no line in `/etc/group`: it is named by its number.
pub fn group(name: &str) -> Option<u32> {
    number(name, &std::fs::read_to_string(Path::new(GROUPS)).unwrap_or_default())
}

fn number(name: &str, groups: &str) -> Option<u32> {
    let of_line = |line: &str| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name);
        fields.nth(1).filter(|_| is_it)?.parse().ok()
    };
    name.parse().ok().or_else(|| groups.lines().find_map(of_line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_name_or_number() {
        let groups = "root:x:0:\n\nkitfs:x:991:anna,bert\nodd\nkitfs2:x:text:\n";
        for (name, expected) in [
            ("root", Some(0)),
            ("kitfs", Some(991)),
            ("4711", Some(4711)),
            ("kit", None),
            ("kitfs2", None),
            ("odd", None),
            ("", None),
        ] {
            assert_eq!(number(name, groups), expected, "{name}");
        }
    }
}
