//! What a client may do, in the bit sets of Kafka's `authorized operations`: a bit per operation that is served.

const READ: i32 = 1 << 3;
const WRITE: i32 = 1 << 4;
const CREATE: i32 = 1 << 5;
const DELETE: i32 = 1 << 6;
const DESCRIBE: i32 = 1 << 8;
const DESCRIBE_CONFIGS: i32 = 1 << 10;
const IDEMPOTENT_WRITE: i32 = 1 << 12;

/// Nobody asked.
pub(super) const NOT_ASKED: i32 = i32::MIN;
/// On the cluster.
pub(super) const CLUSTER: i32 = CREATE | DESCRIBE | DESCRIBE_CONFIGS | IDEMPOTENT_WRITE;
/// On a topic.
pub(super) const TOPIC: i32 = READ | WRITE | DELETE | DESCRIBE | DESCRIBE_CONFIGS;
/// On a topic of the broker's own.
pub(super) const INTERNAL_TOPIC: i32 = READ | DESCRIBE | DESCRIBE_CONFIGS;
/// On a group.
pub(super) const GROUP: i32 = READ | DELETE | DESCRIBE;
/// On the group of a trigger.
pub(super) const TRIGGER_GROUP: i32 = DESCRIBE;
