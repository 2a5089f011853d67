package org.clusir;

import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.CancellationException;

/** The native functions of Clusir.kt, called from a desktop JVM: GRAPH ROUTER ORT_LIBRARY IN.rgb OUT.rgb WIDTH HEIGHT CHANNELS. */
public final class Clusir {
    public interface Progress {
        boolean onProgress(int done, int total);
    }

    static native long open(ByteBuffer graph, ByteBuffer router, String library, int threads);

    static native long openRunner(String description, TileRunner runner, boolean channelsLast);

    static native void close(long handle);

    static native float[] restore(long handle, ByteBuffer in, ByteBuffer out, int width, int height, int channels, Progress progress);

    static native String label(long handle, int level, int cluster);

    static ByteBuffer direct(String path) throws Exception {
        byte[] bytes = Files.readAllBytes(Path.of(path));
        ByteBuffer buffer = ByteBuffer.allocateDirect(bytes.length);
        buffer.put(bytes).rewind();
        return buffer;
    }

    static void expect(Class<? extends Throwable> kind, String what, Runnable action) {
        try {
            action.run();
        } catch (Throwable thrown) {
            if (kind.isInstance(thrown)) return;
            throw new AssertionError(what + ": " + thrown);
        }
        throw new AssertionError(what + ": nothing was thrown");
    }

    public static void main(String[] names) throws Exception {
        System.loadLibrary("clusir_jni");
        if (names[0].equals("litert")) {
            inLiteRt(names);
            return;
        }
        ByteBuffer graph = direct(names[0]);
        long handle = open(graph, direct(names[1]), names[2], 2);
        int width = Integer.parseInt(names[5]), height = Integer.parseInt(names[6]), channels = Integer.parseInt(names[7]);
        ByteBuffer in = direct(names[3]), out = ByteBuffer.allocateDirect(in.capacity());
        int[] calls = {0};
        float[] posterior = restore(handle, in, out, width, height, channels, (done, total) -> ++calls[0] > 0);
        byte[] restored = new byte[out.capacity()];
        out.get(restored);
        Files.write(Path.of(names[4]), restored);

        expect(RuntimeException.class, "half a model", () -> open(graph, null, names[2], 1));
        expect(IllegalArgumentException.class, "no bytes", () -> open(null, null, names[2], 1));
        expect(IllegalArgumentException.class, "zero width", () -> restore(handle, in, out, 0, height, channels, null));
        expect(IllegalArgumentException.class, "too large", () -> restore(handle, in, out, width + 1, height, channels, null));
        expect(IllegalArgumentException.class, "in place", () -> restore(handle, in, in, width, height, channels, null));
        expect(CancellationException.class, "stopped", () -> restore(handle, in, out, width, height, channels, (d, t) -> d < 1));
        expect(IllegalStateException.class, "a listener that throws", () -> restore(handle, in, out, width, height, channels, (d, t) -> {
            throw new IllegalStateException("stop");
        }));
        System.out.println(posterior.length + " " + calls[0] + " " + label(handle, 0, 1));
        close(handle);
    }

    /** litert MODEL.tflite MODEL.json IN.rgb OUT.rgb WIDTH HEIGHT CHANNELS. */
    static void inLiteRt(String[] names) throws Exception {
        String description = Files.readString(Path.of(names[2]));
        int width = Integer.parseInt(names[5]), height = Integer.parseInt(names[6]), channels = Integer.parseInt(names[7]);
        ByteBuffer in = direct(names[3]), out = ByteBuffer.allocateDirect(in.capacity());
        int[] calls = {0};
        try (LiteRtRunner runner = new LiteRtRunner(direct(names[1]), 2)) {
            long handle = openRunner(description, runner, true);
            restore(handle, in, out, width, height, channels, (done, total) -> ++calls[0] > 0);
            close(handle);
        }
        byte[] restored = new byte[out.capacity()];
        out.get(restored);
        Files.write(Path.of(names[4]), restored);
        expect(RuntimeException.class, "no description", () -> openRunner("{}", (a, b) -> {}, true));
        expect(IllegalArgumentException.class, "no runner", () -> openRunner(description, null, true));
        long throwing = openRunner(description, (from, to) -> {
            throw new IllegalStateException("stop");
        }, false);
        expect(IllegalStateException.class, "a runner that throws", () -> restore(throwing, in, out, width, height, channels, null));
        close(throwing);
        System.out.println(calls[0]);
    }
}
