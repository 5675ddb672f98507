//! Whether the process that calls is managed. Where nobody is exempt and namespaces do not matter, that costs one read.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use aya_ebpf::helpers::{bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::SockAddrContext;
use storage_schema::map::{EnrolledNamespace, Enrolment, FrontendKey, key};

#[map(name = "enrolment")]
static ENROLMENT: Array<Enrolment> = Array::with_max_entries(1, 0);
#[map(name = "exempt_cgroups")]
static EXEMPT_CGROUPS: HashMap<u64, u32> = HashMap::with_max_entries(Enrolment::EXEMPT_MAX, 0);
/// `BPF_F_NO_PREALLOC`: on most nodes there are none.
#[map(name = "namespaces")]
static NAMESPACES: HashMap<u64, EnrolledNamespace> = HashMap::with_max_entries(Enrolment::NAMESPACES_MAX, 1);

const CALL_ENROL_BE: u16 = Enrolment::CALL_ENROL.to_be();
const CALL_LEAVE_BE: u16 = Enrolment::CALL_LEAVE.to_be();
const CALL_WORD: u32 = (Enrolment::CALL_ADDRESS as u32).to_be();

/// What a process that connects is.
pub enum Enrolled {
    /// One whose connections are balanced.
    Managed,
    /// One whose connections go where it dials.
    Unmanaged,
    /// One that enrols its namespace, or ends that. There is nobody at the address: it is refused at once.
    Call,
}

#[inline(always)]
pub fn of(ctx: &SockAddrContext, destination: &FrontendKey) -> Enrolled {
    let flags = flags();
    if flags == 0 {
        return Enrolled::Managed;
    }
    if flags & Enrolment::BY_CALL != 0 && is_call(ctx, destination) {
        return Enrolled::Call;
    }
    if is_managed(ctx, flags) { Enrolled::Managed } else { Enrolled::Unmanaged }
}

/// Whether the process that sends is managed.
#[inline(always)]
pub fn manages(ctx: &SockAddrContext) -> bool {
    let flags = flags();
    flags == 0 || is_managed(ctx, flags)
}

#[inline(always)]
fn flags() -> u32 {
    ENROLMENT.get(0).map_or(0, |enrolment| enrolment.flags)
}

#[inline(always)]
fn is_managed(ctx: &SockAddrContext, flags: u32) -> bool {
    if flags & Enrolment::EXEMPTIONS != 0 && is_exempt() {
        return false;
    }
    // SAFETY: a helper; the verifier checks the context. Whether there is an entry matters, not what is in it.
    flags & Enrolment::BY_NAMESPACE == 0 || unsafe { NAMESPACES.get(bpf_get_netns_cookie(ctx.as_ptr())) }.is_some()
}

/// Whether a cgroup that the process is in, at whatever depth, is exempt.
#[inline(always)]
fn is_exempt() -> bool {
    for level in 0..=Enrolment::DEPTH_MAX {
        // SAFETY: a helper whose argument is a number; 0: the process is not so deep.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if cgroup == 0 {
            return false;
        }
        if EXEMPT_CGROUPS.get_ptr(cgroup).is_some() {
            return true;
        }
    }
    false
}

/// Whether root enrols the namespace by this connection, or ends that; done with it.
#[inline(always)]
fn is_call(ctx: &SockAddrContext, destination: &FrontendKey) -> bool {
    let FrontendKey { address, port_be, .. } = *destination;
    if port_be != CALL_ENROL_BE && port_be != CALL_LEAVE_BE {
        return false;
    }
    let is_there = address[3] == CALL_WORD && (key::is_mapped(&address) || address[..3] == [0; 3]);
    // The user in the initial user namespace, whatever it is called in the caller's own.
    if !is_there || bpf_get_current_uid_gid() as u32 != 0 {
        return false;
    }
    // SAFETY: helpers; the verifier checks the context.
    let (namespace, since_ns) = unsafe { (bpf_get_netns_cookie(ctx.as_ptr()), bpf_ktime_get_boot_ns()) };
    if port_be == CALL_LEAVE_BE {
        let _ = NAMESPACES.remove(namespace);
    } else {
        // Without room for it the namespace is not managed; the agent lets go those that are gone.
        let _ = NAMESPACES.insert(namespace, EnrolledNamespace { since_ns, inode: 0, reserved: 0 }, 0);
    }
    true
}
