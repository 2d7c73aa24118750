// Prints the records of a topic's only partition from its beginning, in the words of DumpLogSegments.

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

public class Read {
    public static void main(String[] arguments) {
        Map<String, Object> settings = Map.of("bootstrap.servers", arguments[0], "isolation.level", arguments[2]);
        var partition = new TopicPartition(arguments[1], 0);
        try (var consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.assign(List.of(partition));
            consumer.seekToBeginning(List.of(partition));
            long end = consumer.endOffsets(List.of(partition)).get(partition);
            while (consumer.position(partition) < end) {
                for (var record : consumer.poll(Duration.ofSeconds(1))) {
                    List<String> names = new ArrayList<>();
                    record.headers().forEach(header -> names.add(header.key()));
                    System.out.println("| offset: " + record.offset() + " " + record.timestampType() + ": " + record.timestamp()
                        + " keySize: " + size(record.key()) + " valueSize: " + size(record.value())
                        + " headerKeys: [" + String.join(",", names) + "]"
                        + text(" key: ", record.key()) + text(" payload: ", record.value()));
                }
            }
        }
        System.out.println("OK");
    }

    static int size(byte[] bytes) {
        return bytes == null ? -1 : bytes.length;
    }

    static String text(String name, byte[] bytes) {
        return bytes == null ? "" : name + new String(bytes, StandardCharsets.UTF_8);
    }
}
