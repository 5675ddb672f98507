//! Manifests: what can be read, and the one line that says what is wrong with what cannot.

use agent::manifest::{Document, parse};
use expect_test::{Expect, expect};
use storage_schema::resource::{Resource, WorkloadStatus};

fn accepted(text: &str) -> Vec<Document> {
    parse("m.yaml", text).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn refused(text: &str, expected: &Expect) {
    let errors = parse("m.yaml", text).map(|documents| documents.len()).expect_err("accepted");
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(lines.iter().all(|line| !line.contains('\n')), "{lines:?}");
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn documents_are_resources_wherever_their_kind_stands() {
    let documents = accepted(
        "# a comment before the first document\n\
         ---\n\
         name: bookinfo/reviews\n\
         vips: [10.96.0.20, 'fd00:96::20']\n\
         ports:\n\
         - {port: 9080, targetPort: 9080}\n\
         kind: Service\n\
         ---\n\
         # nothing but a comment\n\
         ---\n\
         kind: Workload\n\
         uid: reviews-v1\n\
         status: terminating\n\
         --- {kind: Node, name: node1}\n\
         ...\n",
    );
    let [service, workload, node] = &documents[..] else { panic!("{documents:?}") };
    let (Resource::Service(service), Resource::Workload(workload), Resource::Node(node)) =
        (&service.resource, &workload.resource, &node.resource)
    else {
        panic!("{documents:?}")
    };
    assert_eq!(service.vips.len(), 2);
    assert_eq!((workload.status, workload.weight), (WorkloadStatus::Terminating, 1));
    assert_eq!(node.name, "node1");
    assert_eq!(documents[1].place(), "m.yaml:11");
}

#[test]
fn json_is_yaml() {
    assert_eq!(accepted("{\n\t\"kind\": \"Node\",\n\t\"name\": \"node1\"\n}\n").len(), 1);
}

#[test]
fn a_manifest_without_documents_is_empty() {
    assert!(accepted("").is_empty());
    assert!(accepted("---\n# nothing\n---\n").is_empty());
}

#[test]
fn what_is_printed_as_yaml_can_be_read() {
    let documents = accepted("kind: Workload\nuid: 'on'\nnamespace: '007'\naddresses: [127.1.2.3]\n");
    let printed = serde_saphyr::to_string(&documents[0].resource).unwrap();
    assert_eq!(accepted(&printed)[0].resource, documents[0].resource);
}

#[test]
fn an_unknown_field_is_named_with_its_line() {
    refused(
        "kind: Service\nname: a/b\nclusterIp: 10.0.0.1\n",
        &expect![
            "m.yaml:3: document 1: clusterIp: unknown field `clusterIp`, expected one of name, hostname, vips, externalAddresses, ports, allPorts, loadBalancing, noEndpoints, drain, accelerate, waypoint"
        ],
    );
}

#[test]
fn an_unknown_field_deep_inside_is_named_with_its_path() {
    refused(
        "kind: Service\nname: a/b\nports:\n- port: 80\n  targetPort: 80\n- port: 81\n  target: 81\n",
        &expect![
            "m.yaml:7: document 1: ports[1].target: unknown field `target`, expected one of name, port, targetPort, protocol, nodePort"
        ],
    );
}

#[test]
fn a_choice_of_backends_has_a_short_and_a_long_form() {
    let documents = accepted(
        "kind: Service\nname: a/b\nloadBalancing: weighted\n\
         ---\n\
         kind: Service\nname: a/c\nloadBalancing:\n  policy: maglev\n  locality: {mode: failover, routingPreference: [region, zone]}\n  affinity: {timeoutSeconds: 60}\n",
    );
    let said: Vec<String> = documents
        .iter()
        .map(|document| match &document.resource {
            Resource::Service(service) => service.load_balancing.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(said, ["weighted", "maglev, failover (region, zone), affinity 60 s"]);
    refused(
        "kind: Service\nname: a/b\nloadBalancing: fair\n---\nkind: Service\nname: a/b\nloadBalancing:\n  locality:\n    mode: near\n",
        &expect![[r"
            m.yaml:3: document 1: loadBalancing: unknown variant `fair`, expected one of random, weighted, maglev
            m.yaml:9: document 2: loadBalancing.locality.mode: unknown variant `near`, expected one of none, strict, failover"]],
    );
}

#[test]
fn a_missing_field_is_named() {
    refused(
        "kind: Node\n---\nkind: Service\nname: a/b\nports:\n- port: 80\n",
        &expect![[r"
        m.yaml:1: document 1: missing field `name`
        m.yaml:6: document 2: ports[0]: missing field `targetPort`"]],
    );
}

#[test]
fn a_value_of_the_wrong_type_is_named() {
    refused(
        "\n\nkind: Service\nname: a/b\nports:\n- port: http\n  targetPort: 80\n---\nkind: Service\nname: a/b\nports: 80\n",
        &expect![[r"
            m.yaml:6: document 1: ports[0].port: must be a number from 1 to 65535
            m.yaml:11: document 2: ports: must be a list"]],
    );
}

#[test]
fn a_value_out_of_range_is_named() {
    refused(
        "kind: Service\nname: a/b\nports:\n- {port: 80, targetPort: 65536}\n",
        &expect!["m.yaml:4: document 1: ports[0].targetPort: must be a number from 1 to 65535"],
    );
}

#[test]
fn an_address_that_is_none_is_named() {
    refused(
        "kind: Service\nname: a/b\nvips:\n- 10.96.0.1\n- 10.96.0.256\n",
        &expect!["m.yaml:5: document 1: vips[1]: invalid IP address syntax"],
    );
}

#[test]
fn an_unknown_choice_is_named_with_what_there_is() {
    refused(
        "kind: Workload\nuid: a\nstatus: sick\n",
        &expect![
            "m.yaml:3: document 1: status: unknown variant `sick`, expected one of healthy, unhealthy, terminating"
        ],
    );
}

#[test]
fn a_kind_that_is_missing_or_unknown_is_named() {
    refused(
        "name: a/b\n---\nkind: Pod\n---\nkind: service\n---\nkind: [Service]\n---\n- kind: Service\n",
        &expect![[r"
            m.yaml:1: document 1: kind: is required: Service, Workload or Node
            m.yaml:3: document 2: kind: must be Service, Workload or Node, not `Pod`
            m.yaml:5: document 3: kind: must be Service, Workload or Node, not `service`
            m.yaml:7: document 4: kind: must be Service, Workload or Node
            m.yaml:9: document 5: must be a mapping with a `kind` and the fields of that kind"]],
    );
}

#[test]
fn a_field_that_is_there_twice_is_named() {
    refused(
        "kind: Service\nname: a/b\nname: a/c\n",
        &expect!["m.yaml:3: document 1: duplicate mapping key `name` is not allowed here"],
    );
    refused(
        "kind: Service\nkind: Service\nname: a/b\n",
        &expect!["m.yaml:2: document 1: duplicate mapping key `kind` is not allowed here"],
    );
}

#[test]
fn what_is_no_yaml_is_named_with_its_line() {
    refused(
        "kind: Service\nname: a/b\n---\nkind: Service\nvips: [10.96.0.1\nname: a/c\n",
        &expect!["m.yaml:6: document 2: illegal placement of ':' indicator"],
    );
    refused(
        "kind: Service\n\tname: a/b\n",
        &expect!["m.yaml:1: document 1: while scanning a plain scalar, found a tab"],
    );
    refused("kind: Service\nname: *nowhere\n", &expect!["m.yaml:2: document 1: reference to unknown value"]);
}

#[test]
fn a_billion_laughs_are_refused() {
    let mut lines = vec!["kind: Service\nname: a/b\nhostname: &a [x,x,x,x,x,x,x,x,x]\n".to_owned()];
    for (name, of) in "bcdefghij".chars().zip("abcdefghi".chars()) {
        lines.push(format!("{name}: &{name} [*{of},*{of},*{of},*{of},*{of},*{of},*{of},*{of},*{of}]\n"));
    }
    refused(
        &lines.concat(),
        &expect![
            "m.yaml:8: document 1: YAML document too large or too complex: limits breached: Nodes { nodes: 250001 }"
        ],
    );
}

#[test]
fn what_the_agent_says_about_a_field_is_said_about_its_line() {
    let documents = accepted(
        "---\n\nkind: Service\nname: a/b\nports:\n- port: 80\n  targetPort: 80\n-\n  port: 81\n  targetPort: 81\n",
    );
    let line = |field: &str| documents[0].error(field, "is wrong").to_string();
    assert_eq!(line("ports[1].port"), "m.yaml:9: document 1: ports[1].port: is wrong");
    assert_eq!(line("name"), "m.yaml:4: document 1: name: is wrong");
    assert_eq!(line("ports[7].port"), "m.yaml:5: document 1: ports[7].port: is wrong");
    assert_eq!(line("waypoint"), "m.yaml:3: document 1: waypoint: is wrong");
    assert_eq!(line(""), "m.yaml:3: document 1: is wrong");
}
