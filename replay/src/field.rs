//! Two resources, or two table entries, field by field.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use storage_schema::resource::Resource;

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// Its path, as the manifest has it: `status`, `ports[http].targetPort`.
    pub field: String,
    /// What it was; not given: it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// What it is; not given: it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// What names an element of a list, the first of these that all elements have and no two share; else its position does.
const NAMING: [&str; 5] = ["name", "service", "uid", "servicePort", "port"];

/// The fields in which two states of a resource differ, in the order of their paths.
pub(crate) fn between(before: Option<&Resource>, after: Option<&Resource>) -> Vec<FieldChange> {
    compare(&fields(before), &fields(after))
}

/// The entries in which two sets of fields differ.
pub(crate) fn compare(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> Vec<FieldChange> {
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort_unstable();
    paths.dedup();
    let change = |path: &String| FieldChange {
        field: path.clone(),
        before: before.get(path).cloned(),
        after: after.get(path).cloned(),
    };
    paths.into_iter().map(change).filter(|change| change.before != change.after).collect()
}

/// A resource's fields by their paths.
pub(crate) fn fields(resource: Option<&Resource>) -> BTreeMap<String, Value> {
    let mut fields = BTreeMap::new();
    if let Some(resource) = resource {
        let value = serde_json::to_value(resource).expect("resources have names for fields");
        flatten(String::new(), value, &mut fields);
        fields.remove("kind");
    }
    fields
}

fn flatten(path: String, value: Value, fields: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                flatten(path, member, fields);
            }
        }
        Value::Array(elements) if !elements.is_empty() && elements.iter().all(Value::is_object) => {
            let labels = labels(&elements);
            for (label, element) in labels.into_iter().zip(elements) {
                flatten(format!("{path}[{label}]"), element, fields);
            }
        }
        leaf => {
            fields.insert(path, leaf);
        }
    }
}

/// What the elements of a list are called.
fn labels(elements: &[Value]) -> Vec<String> {
    let by = |naming: &&str| -> Option<Vec<String>> {
        let label = |element: &Value| match element.get(naming)? {
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        let labels: Vec<String> = elements.iter().map(label).collect::<Option<_>>()?;
        let mut distinct = labels.clone();
        distinct.sort_unstable();
        distinct.dedup();
        (distinct.len() == labels.len()).then_some(labels)
    };
    NAMING.iter().find_map(by).unwrap_or_else(|| (0..elements.len()).map(|position| position.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use storage_schema::resource::{Backing, Protocol, Service, ServicePort, Workload, WorkloadStatus};

    use super::*;

    fn port(name: &str, port: u16) -> ServicePort {
        ServicePort { name: name.to_owned(), port, target_port: 8080, protocol: Protocol::Tcp, node_port: 0 }
    }

    fn told(before: Option<&Resource>, after: Option<&Resource>) -> Vec<String> {
        let text = |value: &Option<Value>| value.as_ref().map_or_else(|| "-".to_owned(), Value::to_string);
        let changes = between(before, after);
        changes.iter().map(|c| format!("{}: {} → {}", c.field, text(&c.before), text(&c.after))).collect()
    }

    #[test]
    fn fields_are_named_by_what_names_them() {
        let service = |ports| Resource::Service(Service { name: "a/b".into(), ports, ..Service::default() });
        let (one, other) = (vec![port("http", 80), port("grpc", 90)], vec![port("grpc", 91), port("http", 80)]);
        assert_eq!(
            told(Some(&service(one)), Some(&service(other))),
            ["ports[grpc].port: 90 → 91"],
            "order alone is no change"
        );
        let (two, one) = (service(vec![port("", 80), port("", 90)]), service(vec![port("", 80)]));
        let unnamed = told(Some(&two), Some(&one));
        assert_eq!(unnamed[0], "ports[90].port: 90 → -");
    }

    #[test]
    fn additions_and_removals_name_every_field() {
        let workload = Workload {
            uid: "w".into(),
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
            status: WorkloadStatus::Terminating,
            services: vec![Backing { service: "a/b".into(), ports: Vec::new() }],
            ..Workload::default()
        };
        let workload = Some(&Resource::Workload(workload));
        let added = told(None, workload);
        assert!(added.contains(&"addresses: - → [\"127.0.0.1\"]".to_owned()), "{added:?}");
        assert!(added.contains(&"services[a/b].service: - → \"a/b\"".to_owned()), "{added:?}");
        assert!(!added.iter().any(|line| line.starts_with("kind")), "{added:?}");
        assert_eq!(told(workload, None).len(), added.len());
        assert_eq!(told(workload, workload), [""; 0]);
    }
}
