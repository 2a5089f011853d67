// The border between org.clusir.Clusir and clusir's C interface. Pixels are direct byte buffers: nothing is copied
// here.
#include <jni.h>

#include <clusir/clusir.h>

#include <vector>

namespace {

// What a handle points to. `runner`: an org.clusir.TileRunner (a global reference), where Java runs the tiles.
struct Opened {
    clusir_model* model = nullptr;
    JavaVM* vm = nullptr;
    jobject runner = nullptr;
    jlong in_bytes = 0, out_bytes = 0;
};

Opened* opened_of(jlong handle) { return reinterpret_cast<Opened*>(handle); }
clusir_model* model_of(jlong handle) { return handle != 0 ? opened_of(handle)->model : nullptr; }

// One tile in Java, on the thread that called restore. An exception there stops the run.
int tile(void* user, const float* in, float* out) {
    const auto* opened = static_cast<const Opened*>(user);
    JNIEnv* env = nullptr;
    if (opened->vm->GetEnv(reinterpret_cast<void**>(&env), JNI_VERSION_1_6) != JNI_OK) return 1;
    jobject from = env->NewDirectByteBuffer(const_cast<float*>(in), opened->in_bytes);
    jobject to = from != nullptr ? env->NewDirectByteBuffer(out, opened->out_bytes) : nullptr;
    if (to == nullptr) return 1;
    jclass kind = env->GetObjectClass(opened->runner);
    const jmethodID run = env->GetMethodID(kind, "run", "(Ljava/nio/ByteBuffer;Ljava/nio/ByteBuffer;)V");
    if (run != nullptr) env->CallVoidMethod(opened->runner, run, from, to);
    for (jobject local : {from, to, static_cast<jobject>(kind)}) env->DeleteLocalRef(local);
    return env->ExceptionCheck() ? 1 : 0;
}

// Throws `name` in Java with clusir's line; the caller returns at once.
void raise(JNIEnv* env, clusir_status status) {
    const char* name = status == CLUSIR_INVALID_ARGUMENT ? "java/lang/IllegalArgumentException"
                       : status == CLUSIR_CANCELLED      ? "java/util/concurrent/CancellationException"
                       : status == CLUSIR_OUT_OF_MEMORY  ? "java/lang/OutOfMemoryError"
                                                         : "java/lang/RuntimeException";
    if (jclass kind = env->FindClass(name)) env->ThrowNew(kind, clusir_last_error());
}

struct Listener {
    JNIEnv* env;
    jobject object;
    jmethodID method;
};

// Called on the thread that called restore, so its JNIEnv is the right one. An exception in the listener stops the run.
int progress(void* user, uint32_t done, uint32_t total) {
    auto* listener = static_cast<Listener*>(user);
    const jboolean go = listener->env->CallBooleanMethod(listener->object, listener->method, static_cast<jint>(done),
                                                         static_cast<jint>(total));
    return listener->env->ExceptionCheck() || !go ? 1 : 0;
}

}  // namespace

extern "C" {

JNIEXPORT jlong JNICALL Java_org_clusir_Clusir_open(JNIEnv* env, jclass, jobject graph, jobject router, jstring library,
                                                    jint threads) {
    clusir_open_options options{};
    options.struct_size = sizeof options;
    options.backend = "ort";
    options.threads = threads;
    const char* name = library != nullptr ? env->GetStringUTFChars(library, nullptr) : nullptr;
    options.ort_library = name;
    const auto bytes = [env](jobject buffer) {
        return buffer != nullptr ? env->GetDirectBufferAddress(buffer) : nullptr;
    };
    const auto size = [env](jobject buffer) {
        const jlong capacity = buffer != nullptr ? env->GetDirectBufferCapacity(buffer) : 0;
        return static_cast<size_t>(capacity > 0 ? capacity : 0);
    };
    clusir_model* model = nullptr;
    const clusir_status status =
        clusir_open_memory(bytes(graph), size(graph), bytes(router), size(router), &options, &model);
    if (name != nullptr) env->ReleaseStringUTFChars(library, name);
    if (status != CLUSIR_OK) return raise(env, status), 0;
    auto* opened = new Opened;
    opened->model = model;
    return reinterpret_cast<jlong>(opened);
}

JNIEXPORT jlong JNICALL Java_org_clusir_Clusir_openRunner(JNIEnv* env, jclass, jstring description, jobject runner,
                                                          jboolean channels_last) {
    auto* opened = new Opened;
    const char* text = description != nullptr ? env->GetStringUTFChars(description, nullptr) : nullptr;
    clusir_runner given{};
    given.struct_size = sizeof given;
    given.run = runner != nullptr ? tile : nullptr;
    given.user = opened;
    given.channels_last = channels_last ? 1 : 0;
    const clusir_status status = clusir_open_runner(text, &given, &opened->model);
    if (text != nullptr) env->ReleaseStringUTFChars(description, text);
    clusir_spec spec{};
    spec.struct_size = sizeof spec;
    if (status != CLUSIR_OK || clusir_get_spec(opened->model, &spec) != CLUSIR_OK) {
        delete opened;
        return raise(env, status), 0;
    }
    const jlong side = spec.static_px, plane = side * side * spec.channels * static_cast<jlong>(sizeof(float));
    opened->in_bytes = plane;
    opened->out_bytes = plane * spec.scale * spec.scale;
    env->GetJavaVM(&opened->vm);
    opened->runner = env->NewGlobalRef(runner);
    return reinterpret_cast<jlong>(opened);
}

JNIEXPORT void JNICALL Java_org_clusir_Clusir_close(JNIEnv* env, jclass, jlong handle) {
    Opened* opened = opened_of(handle);
    if (opened == nullptr) return;
    clusir_close(opened->model);
    if (opened->runner != nullptr) env->DeleteGlobalRef(opened->runner);
    delete opened;
}

JNIEXPORT jfloatArray JNICALL Java_org_clusir_Clusir_restore(JNIEnv* env, jclass, jlong handle, jobject in, jobject out,
                                                             jint width, jint height, jint channels, jobject listener) {
    clusir_spec spec{};
    spec.struct_size = sizeof spec;
    if (clusir_get_spec(model_of(handle), &spec) != CLUSIR_OK) return raise(env, CLUSIR_INVALID_ARGUMENT), nullptr;
    const auto wide = static_cast<uint32_t>(width), high = static_cast<uint32_t>(height),
               deep = static_cast<uint32_t>(channels);
    const auto needed = static_cast<jlong>(wide) * static_cast<jlong>(high) * static_cast<jlong>(deep);
    const auto holds = [&](jobject buffer) {
        return buffer != nullptr && needed > 0 && env->GetDirectBufferCapacity(buffer) >= needed;
    };
    if (width < 1 || height < 1 || channels < 1 || channels > 4 || !holds(in) || !holds(out)) {
        env->ThrowNew(env->FindClass("java/lang/IllegalArgumentException"),
                      "the buffers are not direct ones of width x height x channels bytes");
        return nullptr;
    }
    const clusir_image from{env->GetDirectBufferAddress(in), wide, high, deep, CLUSIR_U8, 0};
    const clusir_image to{env->GetDirectBufferAddress(out), wide, high, deep, CLUSIR_U8, 0};
    std::vector<float> posterior(spec.posterior_size);
    Listener target{env, listener, nullptr};
    clusir_run_options options{};
    options.struct_size = sizeof options;
    if (listener != nullptr) {
        target.method = env->GetMethodID(env->GetObjectClass(listener), "onProgress", "(II)Z");
        if (target.method == nullptr) return nullptr;  // NoSuchMethodError is on its way
        options.progress = progress;
        options.user = &target;
    }
    if (spec.posterior_size > 0) options.posterior = posterior.data();
    const clusir_status status = clusir_restore(model_of(handle), &from, &to, &options);
    if (env->ExceptionCheck()) return nullptr;
    if (status != CLUSIR_OK) return raise(env, status), nullptr;
    const auto count = static_cast<jsize>(spec.posterior_size);
    jfloatArray result = env->NewFloatArray(count);
    if (result != nullptr) env->SetFloatArrayRegion(result, 0, count, posterior.data());
    return result;
}

JNIEXPORT jstring JNICALL Java_org_clusir_Clusir_label(JNIEnv* env, jclass, jlong handle, jint level, jint cluster) {
    return env->NewStringUTF(
        clusir_cluster_label(model_of(handle), static_cast<uint32_t>(level), static_cast<uint32_t>(cluster)));
}

}  // extern "C"
