//! Which resources are meant, where not all are: of a list, of a state of the past, of a watch.

use storage_schema::id::Lsn;
use storage_schema::resource::Kind;

use crate::convert::Path;
use crate::rejection::Violations;
use crate::{Stored, proto};

/// Which resources. The default admits all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceFilter {
    /// Those whose names begin so.
    pub name_prefix: String,
    /// Those that belong to this source.
    pub owner: Option<String>,
    /// Those that were changed after this record.
    pub changed_after_lsn: Lsn,
}

impl ResourceFilter {
    /// Whether it admits a resource of this name and owner that was last changed by this record.
    pub fn admits(&self, name: &str, owner: &str, changed_lsn: Lsn) -> bool {
        name.starts_with(&self.name_prefix)
            && self.owner.as_deref().is_none_or(|wanted| wanted == owner)
            && changed_lsn > self.changed_after_lsn
    }
}

/// Resources of one kind, in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQuery {
    /// Their kind.
    pub kind: Kind,
    /// Only these.
    pub filter: ResourceFilter,
    /// The name after which to begin; `None`: with the first.
    pub after: Option<String>,
}

/// Resources that were read together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The resources, in the order of their names.
    pub resources: Vec<Stored>,
    /// The name after which to go on; `None`: that was all.
    pub next: Option<String>,
}

pub(crate) fn encode_filter(filter: &ResourceFilter) -> proto::ResourceFilter {
    let ResourceFilter { name_prefix, owner, changed_after_lsn } = filter.clone();
    let owner = owner.unwrap_or_default();
    proto::ResourceFilter { name_prefix, owner, changed_after_lsn: changed_after_lsn.0 }
}

pub(crate) fn decode_filter(
    path: &Path<'_>,
    filter: Option<proto::ResourceFilter>,
    found: &mut Violations,
) -> Option<ResourceFilter> {
    let proto::ResourceFilter { name_prefix, owner, changed_after_lsn } = filter.unwrap_or_default();
    let name_prefix = found.text(&path.field("name_prefix"), name_prefix);
    let owner = found.text(&path.field("owner"), owner);
    Some(ResourceFilter {
        name_prefix: name_prefix?,
        owner: Some(owner?).filter(|owner| !owner.is_empty()),
        changed_after_lsn: Lsn(changed_after_lsn),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_admits_what_it_says() {
        let all = ResourceFilter::default();
        assert!(all.admits("shop/cart", "", Lsn(1)));
        let filter =
            ResourceFilter { name_prefix: "shop/".to_owned(), owner: Some("cp".to_owned()), changed_after_lsn: Lsn(5) };
        for (name, owner, changed_lsn, admitted) in [
            ("shop/cart", "cp", 6, true),
            ("shop/cart", "cp", 5, false),
            ("shop/cart", "cli", 6, false),
            ("shops", "cp", 6, false),
        ] {
            assert_eq!(filter.admits(name, owner, Lsn(changed_lsn)), admitted, "{name} {owner} {changed_lsn}");
        }
        let mut found = Violations::default();
        let path = Path::root("filter");
        assert_eq!(decode_filter(&path, Some(encode_filter(&filter)), &mut found), Some(filter));
        assert_eq!(decode_filter(&path, None, &mut found), Some(all));
        let broken = proto::ResourceFilter { owner: "a\nb".to_owned(), ..Default::default() };
        assert_eq!(decode_filter(&path, Some(broken), &mut found), None);
        assert!(found.to_string().starts_with("filter.owner: "), "{found}");
    }
}
